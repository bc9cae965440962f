import { OutOfMemoryError } from '@asa/core';
import { afterEach, expect, test, vi } from 'vitest';
import { BufferPool } from '../../../packages/backend-gpu/src/webgpu/buffers';

afterEach(() => vi.unstubAllGlobals());

/** A pool of a device whose memory is used up. */
function poolOf(error: { message: string } | null) {
  vi.stubGlobal('GPUBufferUsage', { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4 });
  const device = {
    limits: { maxBufferSize: 2 ** 30 },
    createBuffer: () => ({ destroy() {} }),
    pushErrorScope: vi.fn(),
    popErrorScope: async () => error,
  };
  const problems: Promise<Error | undefined>[] = [];
  const pool = new BufferPool(
    device as unknown as GPUDevice,
    2 ** 31,
    () => {},
    (problem) => problems.push(problem),
  );
  return { pool, problems, device };
}

test('a device without room is reported with what was asked for', async () => {
  const { pool, problems, device } = poolOf({ message: 'no heap' });
  pool.take(1024, 77);
  expect(device.pushErrorScope).toHaveBeenCalledWith('out-of-memory');
  const [problem] = await Promise.all(problems);
  expect(problem).toBeInstanceOf(OutOfMemoryError);
  expect(problem).toMatchObject({ asked: 1024, inUse: 77 });
  expect(problem?.message).toContain('no heap');
});

test('a device with room reports nothing', async () => {
  const { pool, problems } = poolOf(null);
  pool.take(1024, 0);
  expect(await Promise.all(problems)).toEqual([undefined]);
});
