import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { TextDecoder } from 'node:util';
import { UsageError } from './exit';

/** Texts are strings of the host, which cannot be longer. */
const MAX_FILE_BYTES = 512 * 2 ** 20;

/**
 * The text files that paths name, in order: files as they are, folders with
 * all `.txt` files below them.
 * @throws UsageError when a path holds none.
 */
export async function textFiles(paths: readonly string[]): Promise<string[]> {
  const files: string[] = [];
  for (const path of paths) {
    const info = await stat(path).catch(() => undefined);
    if (!info) throw new UsageError(`${path}: no such file or folder`);
    if (!info.isDirectory()) {
      files.push(path);
      continue;
    }
    const names = await readdir(path, { recursive: true });
    const texts = names.filter((name) => name.endsWith('.txt')).sort();
    if (texts.length === 0) throw new UsageError(`${path}: no .txt file in it`);
    files.push(...texts.map((name) => join(path, name)));
  }
  return files;
}

/**
 * Each file's text, one document a file.
 * @throws UsageError for a file that is too large or no UTF-8 text.
 */
export async function* readTexts(
  files: readonly string[],
): AsyncGenerator<string> {
  for (const file of files) yield readText(file);
}

/** All texts at once. */
export async function readAll(files: readonly string[]): Promise<string[]> {
  const texts: string[] = [];
  for await (const text of readTexts(files)) texts.push(text);
  return texts;
}

async function readText(file: string): Promise<string> {
  const { size } = await stat(file);
  if (size > MAX_FILE_BYTES) {
    throw new UsageError(`${file}: at most 512 MiB a file, got ${size} bytes`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(
      await readFile(file),
    );
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw cause;
    throw new UsageError(`${file}: must be UTF-8 text`, { cause });
  }
}
