import { CheckpointError } from '../errors';

/** A file open for reading by ranges, so that no file has to fit in memory. */
export interface ReadableFile {
  /** Where the file is, for messages. */
  readonly path: string;
  /** Bytes in the file when it was opened. */
  readonly size: number;
  /**
   * Exactly `length` bytes from byte `offset` on, in an array of their own.
   * @throws CheckpointError when the file has not got them, or has changed
   * since it was opened.
   */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Takes a file's bytes in order. `bytes` may be reused after the wait. */
export interface Sink {
  write(bytes: Uint8Array): Promise<void>;
}

/**
 * A folder of files. Names are of its own entries, never paths. Every method
 * throws a `CheckpointError` when a name is not one, or when the storage fails.
 */
export interface Folder {
  readonly path: string;
  /** Names of the files and subfolders, in order. */
  list(): Promise<string[]>;
  has(name: string): Promise<boolean>;
  open(name: string): Promise<ReadableFile>;
  /**
   * Makes or replaces a file. At every moment, a crash included, the name
   * holds the old content or all that `produce` wrote; when `produce` fails
   * the old content stays.
   */
  write(name: string, produce: (sink: Sink) => Promise<void>): Promise<void>;
  /** Removes a file, or a subfolder with all it holds; none is no error. */
  remove(name: string): Promise<void>;
  /** The subfolder of that name, made where it is missing. */
  subfolder(name: string): Promise<Folder>;
}

/** The name that a file has until all of it is written. */
export const temporaryName = (name: string, unique: string): string =>
  `.${name}.${unique}.tmp`;

/** Removes what writes that never ended have left. None may be under way. */
export async function removeTemporaries(folder: Folder): Promise<void> {
  for (const name of await folder.list()) {
    if (/^\..+\.[0-9a-f]{12}\.tmp$/.test(name)) await folder.remove(name);
  }
}

/** Refuses what would lead out of a folder, or means another one on some system. */
export function checkName(folder: string, name: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: NUL ends a path
  if (name === '' || /^\.{1,2}$|[/\\:\u0000]/.test(name)) {
    throw new CheckpointError(
      folder,
      undefined,
      `a file's name must name an entry of the folder, got ${JSON.stringify(name)}`,
    );
  }
}

/** Refuses a range that a file of `size` bytes has not got. */
export function checkRange(
  file: Pick<ReadableFile, 'path' | 'size'>,
  offset: number,
  length: number,
): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
  if (whole && offset >= 0 && length >= 0 && offset + length <= file.size) {
    return;
  }
  throw new CheckpointError(
    file.path,
    undefined,
    `a range must lie in the file's ${file.size} bytes, got ${length} from ${offset} on`,
  );
}

/** Opens a file, hands it over, and closes it whatever happens. */
export async function withFile<T>(
  folder: Folder,
  name: string,
  use: (file: ReadableFile) => Promise<T>,
): Promise<T> {
  const file = await folder.open(name);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

/** A UTF-8 file's text, of at most `limit` bytes. */
export function readText(
  folder: Folder,
  name: string,
  limit = 64 * 2 ** 20,
): Promise<string> {
  return withFile(folder, name, async (file) => {
    if (file.size > limit) {
      throw new CheckpointError(
        file.path,
        undefined,
        `must have at most ${limit} bytes, got ${file.size}`,
      );
    }
    return decodeText(file.path, await file.read(0, file.size));
  });
}

export function writeText(
  folder: Folder,
  name: string,
  text: string,
): Promise<void> {
  return folder.write(name, (sink) =>
    sink.write(new TextEncoder().encode(text)),
  );
}

/** UTF-8 to text; a byte order mark is kept, for the parser to refuse. */
export function decodeText(path: string, bytes: Uint8Array): string {
  try {
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    return decoder.decode(bytes);
  } catch (cause) {
    throw new CheckpointError(path, undefined, 'text must be valid UTF-8', {
      cause,
    });
  }
}

/** A folder in memory: for browsers, and for tests. */
export class MemoryFolder implements Folder {
  private readonly entries = new Map<string, Uint8Array | MemoryFolder>();

  constructor(readonly path = 'memory') {}

  async list(): Promise<string[]> {
    return [...this.entries.keys()].sort();
  }

  async has(name: string): Promise<boolean> {
    return this.entries.has(name);
  }

  async open(name: string): Promise<ReadableFile> {
    checkName(this.path, name);
    const path = `${this.path}/${name}`;
    const bytes = this.entries.get(name);
    if (!bytes) throw new CheckpointError(path, undefined, 'no such file');
    if (bytes instanceof MemoryFolder) {
      throw new CheckpointError(path, undefined, 'is a folder, not a file');
    }
    return memoryFile(path, bytes);
  }

  async write(
    name: string,
    produce: (sink: Sink) => Promise<void>,
  ): Promise<void> {
    checkName(this.path, name);
    const chunks: Uint8Array[] = [];
    await produce({ write: async (bytes) => void chunks.push(bytes.slice()) });
    this.set(name, concatenate(chunks));
  }

  /** Makes or replaces a file; the bytes are not copied. */
  set(name: string, bytes: Uint8Array): void {
    checkName(this.path, name);
    if (this.entries.get(name) instanceof MemoryFolder) {
      const path = `${this.path}/${name}`;
      throw new CheckpointError(path, undefined, 'is a folder, not a file');
    }
    this.entries.set(name, bytes);
  }

  async remove(name: string): Promise<void> {
    checkName(this.path, name);
    this.entries.delete(name);
  }

  async subfolder(name: string): Promise<Folder> {
    checkName(this.path, name);
    const path = `${this.path}/${name}`;
    const entry = this.entries.get(name) ?? new MemoryFolder(path);
    if (!(entry instanceof MemoryFolder)) {
      throw new CheckpointError(path, undefined, 'is a file, not a folder');
    }
    this.entries.set(name, entry);
    return entry;
  }
}

/** A file over bytes in memory, which are not copied. */
export function memoryFile(path: string, bytes: Uint8Array): ReadableFile {
  const file = { path, size: bytes.length };
  return {
    ...file,
    async read(offset, length) {
      checkRange(file, offset, length);
      return bytes.slice(offset, offset + length);
    },
    async close() {},
  };
}

function concatenate(chunks: readonly Uint8Array[]): Uint8Array {
  const size = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}
