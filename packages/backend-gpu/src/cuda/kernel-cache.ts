import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { CompileRequest } from './compiler';

/** Where compiled kernels are kept unless told otherwise. */
export function defaultCacheFolder(
  environment: Readonly<Record<string, string | undefined>> = process.env,
): string {
  const { XDG_CACHE_HOME } = environment;
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'asa', 'cuda');
}

/** Names machine code by all that it depends on. */
export function cacheKey(request: CompileRequest, compiler: string): string {
  const hash = createHash('sha256');
  // Lengths stand before the texts: no two requests run together.
  const add = (text: string) => hash.update(`${text.length}:${text}`);
  add(compiler);
  add(request.source);
  for (const [name, text] of Object.entries(request.headers)) {
    add(name);
    add(text);
  }
  for (const option of request.options) add(option);
  return hash.digest('hex');
}

/**
 * Machine code on disk. A folder that cannot be read or written only costs the
 * compilation.
 */
export class KernelCache {
  constructor(private readonly folder: string | undefined) {}

  get(key: string): Uint8Array | undefined {
    if (this.folder === undefined) return undefined;
    try {
      const code = readFileSync(join(this.folder, `${key}.cubin`));
      return isWhole(code) ? code : undefined;
    } catch {
      return undefined;
    }
  }

  /** Under another name first: no reader sees half a file. */
  put(key: string, code: Uint8Array): void {
    if (this.folder === undefined) return;
    const path = join(this.folder, `${key}.cubin`);
    const temporary = `${path}.${randomBytes(6).toString('hex')}`;
    try {
      mkdirSync(this.folder, { recursive: true });
      writeFileSync(temporary, code);
      renameSync(temporary, path);
    } catch {
      // The next process compiles it again.
    }
  }
}

/** Machine code is an ELF file; an empty or foreign one is none. */
function isWhole(code: Uint8Array): boolean {
  return [0x7f, 0x45, 0x4c, 0x46].every((byte, at) => code[at] === byte);
}
