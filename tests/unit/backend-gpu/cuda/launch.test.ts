import type { Tensor } from '@asa/core';
import { describe, expect, it } from 'vitest';
import {
  boxes,
  f32,
  i32,
  i64,
  packArguments,
} from '../../../../packages/backend-gpu/src/cuda/launch';

describe('packed arguments', () => {
  const tensor = { shape: [1], dtype: 'f32' } as unknown as Tensor;
  const address = 0x7f12_3456_789a;
  const encode = () => new Uint8Array(128).fill(3);
  const pack = (...values: Parameters<typeof packArguments>[0]) => {
    const memory = new DataView(new ArrayBuffer(512));
    const bytes = packArguments(values, memory, () => address, encode);
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
    packArguments([tensor, tensor], memory, () => address, encode);
    const bytes = packArguments([undefined, tensor], memory, () => 5, encode);
    expect(bytes).toBe(16);
    expect(memory.getBigUint64(0, true)).toBe(0n);
    expect(memory.getBigUint64(8, true)).toBe(5n);
  });

  it('have boxes on multiples of 64, numbers right behind', () => {
    const of = boxes({ shape: [9, 2, 56] } as unknown as Tensor, 128);
    expect(of.extents).toEqual([9, 2, 56]);
    expect(of.box).toEqual([128, 1]);
    const { memory, bytes } = pack(i32(1), of, i32(-1));
    expect(bytes).toBe(64 + 128 + 4);
    expect(memory.getUint8(63)).toBe(0);
    expect(memory.getUint8(64)).toBe(3);
    expect(memory.getUint8(191)).toBe(3);
    expect(memory.getInt32(192, true)).toBe(-1);
  });

  it('keep numbers past 32 bits', () => {
    const { memory } = pack(i64(2 ** 40 + 9));
    expect(memory.getBigUint64(0, true)).toBe(2n ** 40n + 9n);
  });
});
