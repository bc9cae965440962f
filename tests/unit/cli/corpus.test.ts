import {
  mkdirSync,
  mkdtempSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { readAll, textFiles } from '../../../packages/cli/src/corpus';
import { UsageError } from '../../../packages/cli/src/exit';

const root = mkdtempSync(join(tmpdir(), 'asa-corpus-'));
afterAll(() => rmSync(root, { recursive: true }));

const file = (name: string, content: string | Uint8Array) => {
  writeFileSync(join(root, name), content);
  return join(root, name);
};
mkdirSync(join(root, 'deep', 'empty'), { recursive: true });
const b = file('b.txt', 'bee');
const a = file('deep/a.txt', 'añ');
const other = file('other.md', 'text all the same');

it('takes files as they are and folders with their .txt files, in order', async () => {
  expect(await textFiles([other, root, b])).toEqual([other, b, a, b]);
  expect(await readAll([a, b])).toEqual(['añ', 'bee']);
});

it.each([
  ['none', 'no such file or folder'],
  ['deep/empty', 'no .txt file in it'],
])('refuses %s', async (name, rule) => {
  const path = join(root, name);
  const found = textFiles([b, path]);
  await expect(found).rejects.toThrow(UsageError);
  await expect(found).rejects.toThrow(`${path}: ${rule}`);
});

it('refuses what is no UTF-8 text, or too long for a string', async () => {
  const binary = file('binary', Uint8Array.of(0x61, 0xff));
  await expect(readAll([b, binary])).rejects.toThrow(
    `${binary}: must be UTF-8 text`,
  );
  const long = file('long', '');
  // A hole: it takes no room on the disk.
  truncateSync(long, 512 * 2 ** 20 + 1);
  await expect(readAll([long])).rejects.toThrow(`${long}: at most 512 MiB`);
});
