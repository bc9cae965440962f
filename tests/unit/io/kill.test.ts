import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'tsup';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Folder, readText } from '../../../packages/core/src/io/files';
import { openLatest } from '../../../packages/core/src/io/versions';
import { openWeights } from '../../../packages/core/src/io/weights';
import { openFolder } from '../../../packages/core/src/node/files';

const KILLS = 50;
/** More kills come in the midst of a save: those between saves prove nothing. */
const INTERRUPTED = KILLS / 5;
let root: string;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'asa-kill-'));
  await build({
    entry: [fileURLToPath(new URL('saver.ts', import.meta.url))],
    outDir: root,
    outExtension: () => ({ js: '.mjs' }),
    format: 'esm',
    target: 'es2023',
    config: false,
    silent: true,
  });
}, 60_000);

afterAll(() => rm(root, { recursive: true }));

/**
 * Starts the saver, and kills it a while after a save is known to be done.
 * Returns the last step that it said was done.
 */
async function saveAndKill(
  kind: string,
  folder: string,
  first: number,
  delay: number,
): Promise<number> {
  const saver = join(root, 'saver.mjs');
  const child = spawn(process.execPath, [saver, kind, folder, `${first}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  const started = new Promise<void>((resolve) => {
    child.stdout.on('data', (chunk) => {
      output += chunk;
      resolve();
    });
  });
  const closed = once(child, 'close');
  await Promise.race([started, closed]);
  await new Promise((resolve) => setTimeout(resolve, delay));
  child.kill('SIGKILL');
  const [, signal] = await closed;
  expect(signal).toBe('SIGKILL');
  return Number(output.trimEnd().split('\n').at(-1));
}

/** The one step that all of a folder's weights are of. */
async function stepOf(folder: Folder): Promise<number> {
  const weights = await openWeights(folder);
  expect(weights.tensors.size).toBe(4);
  const values = new Set<number>();
  for (const name of weights.tensors.keys()) {
    const { data } = await weights.read(name);
    expect(data).toHaveLength(64 * 1024);
    for (const value of data) values.add(value);
  }
  await weights.close();
  expect(values.size).toBe(1);
  return Number([...values][0]);
}

async function stepOfLatest(folder: Folder): Promise<number> {
  const version = await openLatest(folder);
  const step = await stepOf(version);
  expect(JSON.parse(await readText(version, 'trainer.json'))).toEqual({ step });
  return step;
}

/** Entries that a finished save leaves none of. */
async function isUnfinished(folder: Folder): Promise<boolean> {
  const names = await folder.list();
  const steps = names.filter((name) => name.startsWith('step-'));
  return steps.length > 1 || names.some((name) => name.endsWith('.tmp'));
}

test.each([
  ['versions', stepOfLatest],
  ['weights', stepOf],
])(
  `%s: after each of ${KILLS} kills the last good save loads`,
  async (kind, read) => {
    const path = join(root, kind);
    await mkdir(path);
    const folder = await openFolder(path);
    let step = 0;
    let interrupted = 0;
    // When a kill comes is chance: more of them where few came in a save.
    for (let kill = 0; kill < KILLS || interrupted <= INTERRUPTED; kill++) {
      expect(kill).toBeLessThan(2 * KILLS);
      const done = await saveAndKill(kind, path, step, Math.random() * 40);
      step = await read(folder);
      // What was said to be saved is, or the save after it.
      expect([done, done + 1]).toContain(step);
      if (await isUnfinished(folder)) interrupted++;
    }
  },
  120_000,
);
