import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { CheckpointError } from '../../../packages/core/src/errors';
import {
  type Folder,
  MemoryFolder,
  readText,
  withFile,
  writeText,
} from '../../../packages/core/src/io/files';
import { openFolder } from '../../../packages/core/src/node/files';

const refused = (run: Promise<unknown>, rule: string) =>
  expect(run).rejects.toSatisfy(
    (error) => error instanceof CheckpointError && error.message.includes(rule),
  );

/** What every kind of folder must do. */
describe.each(['memory', 'disk'])('a folder in %s', (kind) => {
  let folder: Folder;
  let root: string | undefined;

  beforeEach(async () => {
    if (kind === 'memory') folder = new MemoryFolder();
    else {
      root = await mkdtemp(join(tmpdir(), 'asa-files-'));
      folder = await openFolder(root);
    }
  });

  afterEach(async () => {
    if (root) await rm(root, { recursive: true });
  });

  test('gives back what was written, by ranges', async () => {
    await folder.write('a', async (sink) => {
      await sink.write(Uint8Array.of(1, 2));
      await sink.write(new Uint8Array(0));
      await sink.write(Uint8Array.of(3, 4, 5));
    });
    await withFile(folder, 'a', async (file) => {
      expect(file.size).toBe(5);
      expect(await file.read(0, 5)).toEqual(Uint8Array.of(1, 2, 3, 4, 5));
      expect(await file.read(1, 2)).toEqual(Uint8Array.of(2, 3));
      expect(await file.read(5, 0)).toEqual(new Uint8Array(0));
    });
    expect(await folder.list()).toEqual(['a']);
    expect(await folder.has('a')).toBe(true);
    expect(await folder.has('b')).toBe(false);
  });

  test('a sink has taken the bytes when its wait is over', async () => {
    const bytes = Uint8Array.of(1);
    await folder.write('a', async (sink) => {
      await sink.write(bytes);
      bytes[0] = 2;
      await sink.write(bytes);
    });
    const got = await withFile(folder, 'a', (file) => file.read(0, 2));
    expect(got).toEqual(Uint8Array.of(1, 2));
  });

  test('what is read may be changed', async () => {
    await writeText(folder, 'a', 'x');
    await withFile(folder, 'a', async (file) => {
      (await file.read(0, 1))[0] = 0;
      expect(await file.read(0, 1)).toEqual(Uint8Array.of(0x78));
    });
  });

  test.each([
    [0, 3],
    [3, 0],
    [-1, 1],
    [0, -1],
    [0.5, 1],
    [0, Number.NaN],
    [2 ** 53, 1],
  ])('refuses the range from %d of %d bytes', async (offset, length) => {
    await writeText(folder, 'a', 'xy');
    await withFile(folder, 'a', (file) =>
      refused(file.read(offset, length), "must lie in the file's 2 bytes"),
    );
  });

  test('replaces a file; keeps the old one when the new one fails', async () => {
    await writeText(folder, 'a', 'old');
    const failed = folder.write('a', async (sink) => {
      await sink.write(Uint8Array.of(1));
      throw new Error('no more');
    });
    await expect(failed).rejects.toThrow('no more');
    expect(await readText(folder, 'a')).toBe('old');
    expect(await folder.list()).toEqual(['a']);
    await writeText(folder, 'a', 'new');
    expect(await readText(folder, 'a')).toBe('new');
    expect(await folder.list()).toEqual(['a']);
  });

  test.each([
    '',
    '.',
    '..',
    '../a',
    'a/b',
    '/etc/passwd',
    'a\\b',
    'C:a',
    'a\0',
  ])('refuses the name %j', async (name) => {
    const rule = 'must name an entry of the folder';
    await refused((async () => folder.open(name))(), rule);
    await refused(writeText(folder, name, 'x'), rule);
    await refused(folder.remove(name), rule);
    await refused(folder.subfolder(name), rule);
  });

  test('a missing file', async () => {
    await refused(folder.open('a'), 'a: no such file');
  });

  test('a folder where a file should be, and the reverse', async () => {
    await folder.subfolder('sub');
    await writeText(folder, 'file', 'x');
    await refused(folder.open('sub'), 'is a folder, not a file');
    await refused(writeText(folder, 'sub', 'x'), 'is a folder, not a file');
    await refused(folder.subfolder('file'), 'is a file, not a folder');
    expect(await folder.list()).toEqual(['file', 'sub']);
  });

  test('removes files, full subfolders, and nothing', async () => {
    await writeText(await folder.subfolder('sub'), 'a', 'x');
    await writeText(folder, 'b', 'x');
    await folder.remove('sub');
    await folder.remove('b');
    await folder.remove('c');
    expect(await folder.list()).toEqual([]);
  });

  test('text that is not UTF-8, or too long', async () => {
    await folder.write('a', (sink) => sink.write(Uint8Array.of(0x61, 0xff)));
    await refused(readText(folder, 'a'), 'must be valid UTF-8');
    await writeText(folder, 'b', 'four');
    await refused(readText(folder, 'b', 3), 'at most 3 bytes, got 4');
    expect(await readText(folder, 'b', 4)).toBe('four');
  });
});
