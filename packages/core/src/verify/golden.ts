import type { Backend } from '../backend';
import { AsaError, UnsupportedError } from '../errors';
import { type Folder, withFile } from '../io/files';
import { openSafetensors } from '../io/safetensors';
import { compareGoldenModel, type GoldenRow } from './golden-models';
import {
  compareGoldenOperator,
  type GoldenFile,
  readGoldenFile,
} from './golden-operators';
import type { Row } from './report';

/** An entry of a reference folder: what it is, or why it says nothing. */
export type GoldenEntry =
  | { readonly name: string; readonly kind: 'operator' | 'model' }
  | { readonly name: string; readonly kind: 'other'; readonly reason: string };

/**
 * What a reference folder holds: `*.safetensors` files of one operator each,
 * and model folders, which have an `expected.safetensors`. In order of name.
 */
export async function listGolden(folder: Folder): Promise<GoldenEntry[]> {
  const entries: GoldenEntry[] = [];
  for (const name of await folder.list()) {
    // A readme is nothing that could have been compared.
    if (/\.(md|txt)$/i.test(name)) continue;
    if (name.endsWith('.safetensors')) {
      entries.push({ name, kind: 'operator' });
    } else if (await isModelFolder(folder, name)) {
      entries.push({ name, kind: 'model' });
    } else {
      const reason =
        'neither a .safetensors file nor a folder with expected.safetensors';
      entries.push({ name, kind: 'other', reason });
    }
  }
  return entries;
}

/**
 * Compares one entry, a row for each tensor that the reference holds. What
 * cannot be read, or is not known, is skipped with the reason.
 */
export async function compareGolden(
  backend: Backend,
  folder: Folder,
  entry: GoldenEntry,
): Promise<Row[]> {
  const { name } = entry;
  if (entry.kind === 'other') {
    return [emptyRow(name, 'skipped', entry.reason)];
  }
  try {
    const rows =
      entry.kind === 'model'
        ? await compareGoldenModel(backend, await folder.subfolder(name))
        : await compareGoldenOperator(backend, await readFile(folder, name));
    if (rows.length === 0)
      return [emptyRow(name, 'skipped', 'holds no result')];
    return rows.map((row) => rowOf(name, row));
  } catch (error) {
    if (error instanceof UnsupportedError) {
      const reason = `${error.operator}: ${error.reason}`;
      return [{ ...emptyRow(name, 'missing', reason), missing: 1 }];
    }
    // Our own errors say what is wrong with the entry.
    if (!(error instanceof AsaError)) throw error;
    return [emptyRow(name, 'skipped', error.message)];
  }
}

async function isModelFolder(folder: Folder, name: string): Promise<boolean> {
  try {
    await withFile(folder, name, async () => {});
    return false;
  } catch {
    const inner = await folder.subfolder(name);
    return inner.has('expected.safetensors');
  }
}

function readFile(folder: Folder, name: string): Promise<GoldenFile> {
  return withFile(folder, name, async (file) =>
    readGoldenFile(await openSafetensors(file)),
  );
}

function rowOf(entry: string, { name, error, allowance }: GoldenRow): Row {
  const isOk = error <= allowance;
  const share = error === 0 ? 0 : (100 * error) / allowance;
  return {
    suite: 'golden',
    name: `${entry}: ${name}`,
    dtype: 'f32',
    cases: 1,
    missing: 0,
    worst: Number.isFinite(share) ? share : -1,
    status: isOk ? 'ok' : 'mismatch',
    ...(!isOk && {
      detail: `the error is ${error}, ${allowance} is allowed`,
    }),
  };
}

function emptyRow(name: string, status: Row['status'], detail: string): Row {
  return {
    suite: 'golden',
    name,
    dtype: 'f32',
    cases: 0,
    missing: 0,
    worst: 0,
    status,
    detail,
  };
}
