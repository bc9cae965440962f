import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  bind,
  bytesAt,
  compilerFunctions,
  driverFunctions,
  NativeMemory,
  Out,
  productFunctions,
  textAt,
  u64,
} from '../../../../packages/backend-gpu/src/cuda/bindings';
import { cudaHeader, whyNoCudaHeader } from './toolkit';

describe('64-bit numbers', () => {
  it('are refused where JavaScript would lose digits', () => {
    expect(u64(2n ** 53n - 1n)).toBe(Number.MAX_SAFE_INTEGER);
    expect(() => u64(2n ** 53n)).toThrow(RangeError);
    expect(() => u64(-1)).toThrow('below 2^53, got -1');
    expect(() => u64(0.5)).toThrow(RangeError);
  });

  it('come out of the memory that a call wrote', () => {
    const out = new Out();
    out.memory[0] = 0xffff_ffffn;
    expect(out.take()).toBe(0xffff_ffff);
    expect(out.takeInt()).toBe(-1);
  });
});

describe.skipIf(process.platform !== 'linux')('a bound library', () => {
  const libc = bind('libc.so.6', {
    memset: ['uint64', 'int', 'uint64'],
    memcmp: ['void *', 'void *', 'uint64'],
    atoi: ['const char *'],
  });

  it('takes numbers, text, arrays and addresses', () => {
    const memory = new NativeMemory(16);
    libc.memset(memory.address, 7, 16);
    expect([...memory.bytes]).toEqual(new Array(16).fill(7));
    expect([...bytesAt(memory.address, 2)]).toEqual([7, 7]);
    expect(libc.memcmp(new Uint8Array(16).fill(7), memory.bytes, 16)).toBe(0);
    memory.bytes.set(new TextEncoder().encode('hello\0'));
    expect(textAt(memory.address)).toBe('hello');
    expect(libc.atoi('42')).toBe(42);
    memory.free();
  });

  it('says what the loader says', () => {
    expect(() => bind('/nowhere/libcuda.so', {})).toThrow(/open shared object/);
    expect(() => bind('libc.so.6', { cuInit: ['uint32'] })).toThrow(/cuInit/);
  });
});

const reason = whyNoCudaHeader();

describe.skipIf(reason)(
  `prototypes, as cuda.h has them ${reason ?? ''}`,
  () => {
    const header = reason ? '' : readFileSync(cudaHeader, 'utf8');

    it.each(Object.entries(driverFunctions))('%s', (name, signature) => {
      // The public name stands for the newest version of a function.
      const plain = name.replace(/_v\d$/, '');
      const publicName =
        name === 'cuGraphInstantiateWithFlags' ? 'cuGraphInstantiate' : plain;
      const match = header.match(
        new RegExp(`CUDAAPI ${publicName}\\(([^)]*)\\);`),
      );
      expect(match).not.toBeNull();
      const kinds = (match?.[1] ?? '')
        .split(',')
        .map((parameter) => kindOf(parameter.trim()));
      expect(signature.map(widthOf)).toEqual(kinds);
    });
  },
);

it('names the functions of all three libraries', () => {
  for (const table of [driverFunctions, compilerFunctions, productFunctions]) {
    for (const [name, signature] of Object.entries(table)) {
      expect(name).toMatch(/^(cu|nvrtc|cublasLt)[A-Z]/);
      expect(signature.length).toBeGreaterThan(0);
    }
  }
});

/** 4 or 8 bytes; every pointer and handle has 8. */
function kindOf(parameter: string): number {
  if (parameter.includes('*')) return 8;
  if (/^(CUdevice|int|unsigned int|unsigned char)\b/.test(parameter)) return 4;
  if (/^(CUresult|CUfunction_attribute|CUdevice_attribute)\b/.test(parameter)) {
    return 4;
  }
  if (/^(cuuint32_t|CUtensorMap[A-Z]\w+)\b/.test(parameter)) return 4;
  return /^CUstreamCaptureMode\b/.test(parameter) ? 4 : 8;
}

const widthOf = (kind: string) => (/^(int|uint32)$/.test(kind) ? 4 : 8);
