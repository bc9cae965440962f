import { describe, expect, test } from 'vitest';
import { BufferPool } from '../../../packages/backend-gpu/src/webgpu/buffers';

Object.assign(globalThis, {
  GPUBufferUsage: { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4 },
});

function pool(): BufferPool {
  const device = {
    limits: { maxBufferSize: 2 ** 30 },
    createBuffer: () => ({ destroy: () => {} }),
  } as unknown as GPUDevice;
  return new BufferPool(device, Number.POSITIVE_INFINITY, () => {});
}

describe('buffer pool', () => {
  test('the same steps get the same buffers, however they gave them back', () => {
    const buffers = pool();
    const step = (order: readonly number[]) => {
      const taken = order.map(() => buffers.take(1000, 0));
      for (const i of order) buffers.give(taken[i]!);
      return taken.map(({ id }) => id);
    };
    const first = step([0, 1, 2, 3, 4]);
    expect(step([3, 1, 4, 0, 2])).toEqual(first);
    expect(step([4, 3, 2, 1, 0])).toEqual(first);
    expect(buffers.created).toBe(5);
  });
});
