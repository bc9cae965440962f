import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { CompileRequest } from '../../../../packages/backend-gpu/src/cuda/compiler';
import { requestOf } from '../../../../packages/backend-gpu/src/cuda/functions';
import {
  cacheKey,
  defaultCacheFolder,
  KernelCache,
} from '../../../../packages/backend-gpu/src/cuda/kernel-cache';

const request: CompileRequest = {
  name: 'a.cu',
  source: 'ab',
  headers: { 'b.cuh': 'c' },
  options: ['-DT=f32'],
};

describe('the key of machine code', () => {
  it('is another one for every part that the code depends on', () => {
    const keys = [
      cacheKey(request, '13.0'),
      cacheKey(request, '13.1'),
      cacheKey({ ...request, source: 'abc' }, '13.0'),
      cacheKey({ ...request, headers: { 'b.cuh': 'd' } }, '13.0'),
      cacheKey({ ...request, headers: { 'c.cuh': 'c' } }, '13.0'),
      cacheKey({ ...request, options: ['-DT=f16'] }, '13.0'),
      cacheKey({ ...request, source: 'a', headers: { b: '.cuhc' } }, '13.0'),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    expect(cacheKey({ ...request }, '13.0')).toBe(keys[0]);
  });

  it('holds the architecture and the definitions', () => {
    const { options } = requestOf('add', { T: 'bf16' }, 89);
    expect(options).toContain('--gpu-architecture=sm_89');
    expect(options).toContain('-DT=bf16');
    expect(requestOf('add', {}, 90).options[0]).toMatch(/=sm_90a$/);
  });
});

describe('the folder of machine code', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'asa-kernels-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const code = Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 1, 2, 3);

  it('gives back what was put in, and leaves no other file', () => {
    const inside = join(folder, 'deep', 'er');
    const cache = new KernelCache(inside);
    expect(cache.get('k')).toBeUndefined();
    cache.put('k', code);
    expect([...(cache.get('k') ?? [])]).toEqual([...code]);
    expect(readdirSync(inside)).toEqual(['k.cubin']);
  });

  it('takes nothing that is not machine code', () => {
    writeFileSync(join(folder, 'empty.cubin'), '');
    writeFileSync(join(folder, 'text.cubin'), 'hello');
    const cache = new KernelCache(folder);
    expect(cache.get('empty')).toBeUndefined();
    expect(cache.get('text')).toBeUndefined();
  });

  it('goes on without a folder that it can write', () => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    const cache = new KernelCache(join(file, 'below'));
    cache.put('k', code);
    expect(cache.get('k')).toBeUndefined();
  });

  it('lies where the system keeps such things', () => {
    expect(defaultCacheFolder({ XDG_CACHE_HOME: '/c' })).toBe('/c/asa/cuda');
    expect(defaultCacheFolder({})).toMatch(/\.cache\/asa\/cuda$/);
  });
});
