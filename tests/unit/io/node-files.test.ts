import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { CheckpointError } from '../../../packages/core/src/errors';
import {
  type Folder,
  readText,
  removeTemporaries,
  withFile,
  writeText,
} from '../../../packages/core/src/io/files';
import { openSafetensors } from '../../../packages/core/src/io/safetensors';
import { makeFolder, openFolder } from '../../../packages/core/src/node/files';
import { fileBytes } from './bytes';

let root: string;
let folder: Folder;

beforeEach(async () => {
  root = await fs.mkdtemp(join(tmpdir(), 'asa-disk-'));
  folder = await openFolder(root);
});

afterEach(async () => {
  vi.restoreAllMocks();
  await fs.rm(root, { recursive: true });
});

const refused = (run: Promise<unknown>, rule: string) =>
  expect(run).rejects.toSatisfy(
    (error) => error instanceof CheckpointError && error.message.includes(rule),
  );

/** Runs as a user without rights, for root may do everything. */
async function unprivileged(run: () => Promise<void>): Promise<void> {
  const root = process.getuid?.() === 0;
  if (root) process.seteuid?.(65534);
  try {
    await run();
  } finally {
    if (root) process.seteuid?.(0);
  }
}

/** Makes the next call of a file handle's method fail as the system would. */
async function failing(method: 'write' | 'sync', code: string): Promise<void> {
  const handle = await fs.open(join(root, 'probe'), 'w');
  const prototype = Object.getPrototypeOf(handle) as fs.FileHandle;
  await handle.close();
  await fs.rm(join(root, 'probe'));
  const error = Object.assign(new Error(code), { code });
  vi.spyOn(prototype, method).mockRejectedValueOnce(error);
}

test('a folder that is missing, or is a file', async () => {
  await refused(openFolder(join(root, 'none')), 'none: no such file or folder');
  await writeText(folder, 'file', 'x');
  await refused(openFolder(join(root, 'file')), 'is a file, not a folder');
  await refused(openFolder(join(root, 'file', 'a')), 'a part of the path');
  await refused(openFolder('a\0b'), 'NUL');
});

test('a folder is made with its parents', async () => {
  const made = await makeFolder(join(root, 'a', 'b'));
  await writeText(made, 'c', 'x');
  expect(await fs.readFile(join(root, 'a', 'b', 'c'), 'utf8')).toBe('x');
});

test('a named pipe or a device does not hang', async () => {
  execFileSync('mkfifo', [join(root, 'pipe')]);
  await refused(folder.open('pipe'), 'is a device or a pipe, not a file');
  await fs.symlink('/dev/zero', join(root, 'zero'));
  await refused(folder.open('zero'), 'is a device or a pipe, not a file');
});

test('no permission to read, to write, to list', async () => {
  await writeText(folder, 'secret', 'x');
  await fs.chmod(root, 0o755);
  await fs.chmod(join(root, 'secret'), 0);
  await unprivileged(() => refused(folder.open('secret'), 'no permission'));
  await fs.chmod(root, 0o555);
  await unprivileged(() =>
    refused(writeText(folder, 'new', 'x'), 'new: no permission'),
  );
  await fs.chmod(root, 0);
  await unprivileged(() => refused(folder.list(), 'no permission'));
  await fs.chmod(root, 0o755);
});

describe.each(['write', 'sync'] as const)('disk full at %s', (method) => {
  test('keeps the old file, leaves nothing else, says so', async () => {
    await writeText(folder, 'a', 'old');
    await failing(method, 'ENOSPC');
    await refused(
      writeText(folder, 'a', 'new'),
      `${join(root, 'a')}: the disk is full, nothing was replaced`,
    );
    expect(await readText(folder, 'a')).toBe('old');
    expect(await folder.list()).toEqual(['a']);
    await writeText(folder, 'a', 'new');
    expect(await readText(folder, 'a')).toBe('new');
  });
});

describe('a file open for reading', () => {
  beforeEach(() => writeText(folder, 'a', '0123456789'));
  const rule = 'was changed or replaced while it was open';

  test('that is replaced', () =>
    withFile(folder, 'a', async (file) => {
      expect((await file.read(0, 10)).length).toBe(10);
      await writeText(folder, 'a', '0123456789');
      await refused(file.read(0, 1), rule);
    }));

  test('that is truncated', () =>
    withFile(folder, 'a', async (file) => {
      await fs.truncate(join(root, 'a'), 5);
      await refused(file.read(0, 10), rule);
      await refused(file.read(0, 1), rule);
    }));

  test('that is written over', () =>
    withFile(folder, 'a', async (file) => {
      // The file system's clock must tick for the change to show.
      await new Promise((resolve) => setTimeout(resolve, 20));
      await fs.writeFile(join(root, 'a'), '9876543210');
      await refused(file.read(0, 10), rule);
    }));

  test('that is removed', () =>
    withFile(folder, 'a', async (file) => {
      await folder.remove('a');
      await refused(file.read(0, 10), rule);
    }));
});

test('a file over 4 GiB is read by ranges', async () => {
  const padding = 4 * 2 ** 30 + 4;
  const header = {
    pad: { dtype: 'U8', shape: [padding], data_offsets: [0, padding] },
    a: { dtype: 'F32', shape: [2], data_offsets: [padding, padding + 8] },
  };
  const start = fileBytes(header);
  const path = join(root, 'large');
  await fs.writeFile(path, start);
  const handle = await fs.open(path, 'r+');
  const values = Float32Array.of(1.5, -2.5);
  await handle.write(
    new Uint8Array(values.buffer),
    0,
    8,
    start.length + padding,
  );
  await handle.close();
  await withFile(folder, 'large', async (file) => {
    const opened = await openSafetensors(file);
    expect((await opened.read('a')).data).toEqual(values);
  });
});

test('more than one chunk is written and read', async () => {
  const bytes = new Uint8Array(64 * 2 ** 20 + 5).map((_, i) => i % 251);
  await folder.write('a', (sink) => sink.write(bytes));
  const got = await withFile(folder, 'a', (file) => file.read(0, file.size));
  expect(Buffer.compare(got, bytes)).toBe(0);
});

test('what a killed write left is cleaned, and nothing else', async () => {
  await fs.writeFile(join(root, '.a.0123456789ab.tmp'), 'x');
  await fs.writeFile(join(root, '.env'), 'x');
  await fs.writeFile(join(root, 'b.tmp'), 'x');
  await removeTemporaries(folder);
  expect(await folder.list()).toEqual(['.env', 'b.tmp']);
});
