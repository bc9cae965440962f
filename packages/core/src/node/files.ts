import { randomBytes } from 'node:crypto';
import { type BigIntStats, constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError } from '../errors';
import {
  checkName,
  checkRange,
  type Folder,
  type ReadableFile,
  type Sink,
  temporaryName,
} from '../io/files';

/** Linux moves at most 2 GiB in one call, and a call's bytes are pinned. */
const CHUNK = 64 * 2 ** 20;

/**
 * A folder on disk, which must be there.
 * @throws CheckpointError when it is not, or is no folder.
 */
export async function openFolder(path: string): Promise<Folder> {
  const stats = await named(path, () => fs.stat(path));
  if (!stats.isDirectory()) throw refuse(path, 'is a file, not a folder');
  return new DiskFolder(path);
}

/** A folder on disk, made with its parents where it is missing. */
export async function makeFolder(path: string): Promise<Folder> {
  await named(path, () => fs.mkdir(path, { recursive: true }));
  return openFolder(path);
}

class DiskFolder implements Folder {
  constructor(readonly path: string) {}

  async list(): Promise<string[]> {
    return (await named(this.path, () => fs.readdir(this.path))).sort();
  }

  async has(name: string): Promise<boolean> {
    return (await this.list()).includes(name);
  }

  open(name: string): Promise<ReadableFile> {
    return openFile(this.entry(name));
  }

  /**
   * The bytes go to a temporary name of the same folder and reach the disk
   * before the rename; the rename reaches it before this returns.
   */
  async write(
    name: string,
    produce: (sink: Sink) => Promise<void>,
  ): Promise<void> {
    const path = this.entry(name);
    const unique = randomBytes(6).toString('hex');
    const temporary = join(this.path, temporaryName(name, unique));
    try {
      await writeThrough(temporary, path, produce);
      await named(path, () => fs.rename(temporary, path));
    } catch (error) {
      // The failure that led here is the one to report.
      await fs.rm(temporary, { force: true }).catch(() => {});
      throw error;
    }
    await this.sync();
  }

  async remove(name: string): Promise<void> {
    const path = this.entry(name);
    await named(path, () => fs.rm(path, { recursive: true, force: true }));
    await this.sync();
  }

  async subfolder(name: string): Promise<Folder> {
    const folder = await makeFolder(this.entry(name));
    await this.sync();
    return folder;
  }

  private entry(name: string): string {
    checkName(this.path, name);
    return join(this.path, name);
  }

  /** Makes the folder's names, not only its files' bytes, survive a crash. */
  private async sync(): Promise<void> {
    // Windows cannot open a folder, and writes its names through by itself.
    if (process.platform === 'win32') return;
    await named(this.path, async () => {
      const handle = await fs.open(this.path, 'r');
      await handle.sync().finally(() => handle.close());
    });
  }
}

/** Writes a new file and waits until the disk has it. `path` is for messages. */
async function writeThrough(
  temporary: string,
  path: string,
  produce: (sink: Sink) => Promise<void>,
): Promise<void> {
  const handle = await named(path, () => fs.open(temporary, 'wx'));
  try {
    await produce({
      write: (bytes) => named(path, () => writeAll(handle, bytes)),
    });
    await named(path, () => handle.sync());
  } finally {
    await named(path, () => handle.close());
  }
}

async function writeAll(
  handle: fs.FileHandle,
  bytes: Uint8Array,
): Promise<void> {
  let at = 0;
  while (at < bytes.length) {
    const length = Math.min(CHUNK, bytes.length - at);
    at += (await handle.write(bytes, at, length)).bytesWritten;
  }
}

async function openFile(path: string): Promise<ReadableFile> {
  // Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
  const flags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0);
  const handle = await named(path, () => fs.open(path, flags));
  try {
    const opened = await named(path, () => handle.stat({ bigint: true }));
    if (!opened.isFile()) {
      const kind = opened.isDirectory() ? 'a folder' : 'a device or a pipe';
      throw refuse(path, `is ${kind}, not a file`);
    }
    return diskFile(path, handle, opened);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

function diskFile(
  path: string,
  handle: fs.FileHandle,
  opened: BigIntStats,
): ReadableFile {
  const file = { path, size: Number(opened.size) };
  return {
    ...file,
    async read(offset, length) {
      checkRange(file, offset, length);
      const bytes = await named(path, () => readAll(handle, offset, length));
      // After the read, so that a change during it is seen as well.
      if (!bytes || !same(opened, await statNow(path))) {
        throw refuse(path, 'was changed or replaced while it was open');
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

/** The bytes of a range, or nothing where the file ends before it does. */
async function readAll(
  handle: fs.FileHandle,
  offset: number,
  length: number,
): Promise<Uint8Array | undefined> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const chunk = Math.min(CHUNK, length - at);
    const { bytesRead } = await handle.read(bytes, at, chunk, offset + at);
    if (bytesRead === 0) return undefined;
    at += bytesRead;
  }
  return bytes;
}

/** What the path names now, or nothing where it is gone. */
async function statNow(path: string): Promise<BigIntStats | undefined> {
  return fs.stat(path, { bigint: true }).catch(() => undefined);
}

const same = (a: BigIntStats, b: BigIntStats | undefined) =>
  b !== undefined &&
  a.dev === b.dev &&
  a.ino === b.ino &&
  a.size === b.size &&
  a.mtimeNs === b.mtimeNs;

const RULES: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or folder',
  EACCES: 'no permission',
  EPERM: 'no permission',
  EROFS: 'the disk is read-only',
  EISDIR: 'is a folder, not a file',
  ENOTDIR: 'a part of the path is a file, not a folder',
  EEXIST: 'is a file, not a folder',
  ENOSPC: 'the disk is full, nothing was replaced; free some space',
  EDQUOT: 'the disk quota is used up, nothing was replaced; free some space',
  EMFILE: 'too many open files; raise the limit (ulimit -n)',
  ENAMETOOLONG: 'the name is too long',
  ERR_INVALID_ARG_VALUE: 'the path holds a NUL character',
};

const refuse = (path: string, rule: string, cause?: unknown) =>
  new CheckpointError(path, undefined, rule, { cause });

/** Runs a file operation; its failure becomes a rule about `path`. */
async function named<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof CheckpointError || !(error instanceof Error)) {
      throw error;
    }
    const code = 'code' in error ? String(error.code) : '';
    throw refuse(path, RULES[code] ?? error.message, error);
  }
}
