/**
 * Several cards in one process, on the emulated ones: device 1 works as late as
 * it may, and no device's kernels see another one's memory.
 */
import type { Backend, Storage } from '@asa/core';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { CudaBackend } from '../../packages/backend-gpu/src/cuda/cuda-backend';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { documentsOf, trained as train } from '../unit/train/models';

const reason = whyNoEmulator();
const documents = documentsOf(19, 3, 8, 30, 5);

const trained = (
  backends: readonly [Backend, ...Backend[]],
  microRows: number,
  dtype?: 'f32' | 'f16' | 'bf16',
) =>
  train(
    backends,
    documents,
    {
      seed: 11,
      steps: 2,
      context: 16,
      rows: 4,
      microRows,
      schedule: { kind: 'constant', peak: 0.02, warmup: 0 },
    },
    dtype,
  );

describe.skipIf(reason)(`several CUDA cards, emulated ${reason ?? ''}`, () => {
  let first: CudaBackend;
  let second: CudaBackend;

  beforeEach(async () => {
    first = await openEmulated({}, 0);
    second = await openEmulated({}, 1);
  }, 120_000);
  afterEach(async () => {
    await first.destroy();
    await second.destroy();
  });

  const floats = (backend: Backend, ...values: number[]): Storage => {
    const storage = backend.allocate(values.length, 'f32');
    backend.write(storage, Float32Array.from(values));
    return storage;
  };
  const numbers = async (backend: Backend, storage: Storage) => [
    ...(await backend.read(storage)),
  ];

  test.each([
    [0, 1],
    [1, 0],
    [0, 0],
    [1, 1],
  ])('device %i receives from device %i', async (to, from) => {
    const [target, source] = [
      await openEmulated({}, to),
      await openEmulated({}, from),
    ];
    const [x, y] = [floats(source, 1, 2, 3), floats(target, 0, 0, 0)];
    const isDone = target.receive(source, (copy) => copy(x, y));
    expect(isDone).toBe(true);
    // What was copied is what lay there then.
    source.write(x, Float32Array.of(7, 8, 9));
    source.free(x);
    floats(source, 0, 0, 0);
    expect(await numbers(target, y)).toEqual([1, 2, 3]);
    const z = floats(source, 4, 5, 6);
    target.receive(source, (copy) => copy(z, y));
    expect(await numbers(target, y)).toEqual([4, 5, 6]);
    await source.destroy();
    target.write(y, Float32Array.of(1, 1, 1));
    expect(await numbers(target, y)).toEqual([1, 1, 1]);
    await target.destroy();
  });

  test('what stands against it is said, and later work goes on', async () => {
    const [x, y] = [floats(first, 1, 2), floats(second, 0, 0)];
    const copyOf = (source: Storage, target: Storage) => () =>
      second.receive(first, (copy) => copy(source, target));
    expect(copyOf(x, floats(second, 0))).toThrow('must lie in the 1');
    expect(copyOf(x, second.allocate(2, 'bf16'))).toThrow('types must agree');
    const inside = 'must not happen while work is recorded';
    expect(() => first.record(copyOf(x, y))).toThrow(inside);
    expect(() => second.record(copyOf(x, y))).toThrow(inside);
    copyOf(x, y)();
    expect(await numbers(second, y)).toEqual([1, 2]);
    first.free(x);
    expect(copyOf(x, y)).toThrow('after it was freed');
    // A backend of another kind.
    const body = vi.fn();
    expect(first.receive({ name: 'cuda' } as Backend, body)).toBe(false);
    expect(body).not.toHaveBeenCalled();
  });

  test('reads of both go on at the same time', async () => {
    // Longer than a pinned buffer: there are waits in between.
    const long = (start: number) =>
      Float32Array.from({ length: 4_200_000 }, (_, i) => start + (i % 997));
    const read = async (backend: Backend, start: number) => {
      const storage = backend.allocate(4_200_000, 'f32');
      backend.write(storage, long(start));
      const got = await backend.read(storage);
      return Buffer.compare(Buffer.from(got.buffer), bytesOf(long(start)));
    };
    const both = [read(first, 0), read(second, 1), read(first, 2)];
    expect(await Promise.all(both)).toEqual([0, 0, 0]);
  });

  test.each(['f32', 'f16', 'bf16'] as const)(
    'two cards with a pass each train to the bits of one: %s',
    async (dtype) => {
      const read = vi.spyOn(second, 'read');
      const one = await trained([first], 2, dtype);
      const two = await trained([first, second], 2, dtype);
      expect(two).toEqual(one);
      // Losses alone went by the host.
      expect(read).toHaveBeenCalledTimes(2);
      expect(await trained([second, first], 2, dtype)).toEqual(one);
      for (const backend of [first, second]) {
        expect(backend.memory().bytesInUse).toBe(0);
      }
    },
  );

  test('more passes only round in another order, the same each time', async () => {
    const one = await trained([first], 1);
    const two = await trained([first, second], 1);
    for (const [step, { loss }] of one.events.entries()) {
      expect(two.events[step]?.loss).toBeCloseTo(loss, 6);
    }
    expect(await trained([first, second], 1)).toEqual(two);
  });

  test('two replicas on one device', async () => {
    const third = await openEmulated({}, 0);
    const fourth = await openEmulated({}, 1);
    const one = await trained([first], 1);
    expect(await trained([first, second, third, fourth], 1)).toEqual(one);
    await third.destroy();
    await fourth.destroy();
  });
});

const bytesOf = ({ buffer }: ArrayBufferView) => Buffer.from(buffer);
