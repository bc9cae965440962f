import { describe, expect, test } from 'vitest';
import { UniformArena } from '../../../packages/backend-gpu/src/webgpu/uniforms';

/** A device whose buffers are arrays, and which counts what it is told. */
function fakeDevice() {
  const made: Uint8Array[] = [];
  const writes: { offset: number; bytes: number }[] = [];
  const device = {
    createBuffer: ({ size }: { size: number }) => {
      const bytes = new Uint8Array(size);
      made.push(bytes);
      return { bytes, destroy: () => {} };
    },
    queue: {
      writeBuffer(
        buffer: { bytes: Uint8Array },
        offset: number,
        data: Uint8Array,
        start: number,
        bytes: number,
      ) {
        writes.push({ offset, bytes });
        buffer.bytes.set(data.subarray(start, start + bytes), offset);
      },
    },
  };
  return { device: device as unknown as GPUDevice, made, writes };
}

const words = (...values: number[]) => Uint32Array.from(values);

// Constants of browsers that Node.js lacks.
Object.assign(globalThis, { GPUBufferUsage: { UNIFORM: 64, COPY_DST: 8 } });

describe('uniforms', () => {
  test('lie in slots of one buffer, and are uploaded together once', () => {
    const { device, made, writes } = fakeDevice();
    const arena = new UniformArena(device);
    const first = arena.slotOf(words(1, 2, 3, 4));
    const second = arena.slotOf(words(5, 6, 7, 8));
    expect(second.gpu).toBe(first.gpu);
    expect([first.offset, second.offset]).toEqual([0, 256]);
    expect(writes).toEqual([]);
    arena.upload();
    arena.upload();
    expect(writes).toEqual([{ offset: 0, bytes: 512 }]);
    expect(made).toHaveLength(1);
    const stored = new Uint32Array(made[0]?.buffer ?? new ArrayBuffer(0));
    expect([...stored.subarray(64, 68)]).toEqual([5, 6, 7, 8]);
    arena.slotOf(words(9, 0, 0, 0));
    arena.upload();
    expect(writes[1]).toEqual({ offset: 512, bytes: 256 });
  });

  test('of the same content are one', () => {
    const arena = new UniformArena(fakeDevice().device);
    const slot = arena.slotOf(words(1, 2, 3, 4));
    expect(arena.slotOf(words(1, 2, 3, 4))).toBe(slot);
    expect(arena.slotOf(words(1, 2, 3, 5)).id).not.toBe(slot.id);
  });

  test('go to another buffer when one is full, and the last one keeps its', () => {
    const { device, made } = fakeDevice();
    const arena = new UniformArena(device);
    let count = 0;
    while (!arena.isFull) arena.slotOf(words(++count, 0, 0, 0));
    const old = arena.slotOf(words(count, 0, 0, 0));
    arena.renew();
    const slot = arena.slotOf(words(count, 0, 0, 0));
    expect(slot.offset).toBe(0);
    expect(slot.gpu).not.toBe(old.gpu);
    expect(slot.id).not.toBe(old.id);
    const stored = new Uint32Array(made[0]?.buffer ?? new ArrayBuffer(0));
    expect(stored[old.offset / 4]).toBe(count);
  });
});
