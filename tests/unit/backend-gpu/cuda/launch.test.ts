import type { Tensor } from '@asa/core';
import { describe, expect, it } from 'vitest';
import {
  f32,
  i32,
  i64,
  packArguments,
} from '../../../../packages/backend-gpu/src/cuda/launch';

describe('packed arguments', () => {
  const tensor = { shape: [1], dtype: 'f32' } as unknown as Tensor;
  const address = 0x7f12_3456_789a;
  const pack = (...values: Parameters<typeof packArguments>[0]) => {
    const memory = new DataView(new ArrayBuffer(64));
    const bytes = packArguments(values, memory, () => address);
    return { memory, bytes };
  };

  it('lie on multiples of their sizes', () => {
    const { memory, bytes } = pack(i32(7), tensor, f32(0.5), i32(-1), i64(3));
    expect(bytes).toBe(32);
    expect(memory.getInt32(0, true)).toBe(7);
    expect(memory.getBigUint64(8, true)).toBe(BigInt(address));
    expect(memory.getFloat32(16, true)).toBe(0.5);
    expect(memory.getInt32(20, true)).toBe(-1);
    expect(memory.getBigUint64(24, true)).toBe(3n);
  });

  it('overwrite what another launch left: a missing tensor is null', () => {
    const memory = new DataView(new ArrayBuffer(16));
    packArguments([tensor, tensor], memory, () => address);
    expect(packArguments([undefined, tensor], memory, () => 5)).toBe(16);
    expect(memory.getBigUint64(0, true)).toBe(0n);
    expect(memory.getBigUint64(8, true)).toBe(5n);
  });

  it('keep numbers past 32 bits', () => {
    const { memory } = pack(i64(2 ** 40 + 9));
    expect(memory.getBigUint64(0, true)).toBe(2n ** 40n + 9n);
  });
});
