import {
  type Backend,
  DeviceLostError,
  DTypeError,
  OutOfMemoryError,
  operators,
  Scope,
  type Storage,
  TensorStateError,
} from '@asa/core';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { CudaBackend } from '../../../../packages/backend-gpu/src/cuda/cuda-backend';
import { FakeCuda } from './fake-cuda';

const isLinux = process.platform === 'linux';

describe.skipIf(!isLinux)('the CUDA backend on a device that is none', () => {
  let cuda: FakeCuda;
  let backend: CudaBackend;

  beforeEach(() => {
    cuda = new FakeCuda();
    backend = cuda.open();
  });
  afterEach(() => backend.destroy());

  const floats = (values: readonly number[]): Storage => {
    const storage = backend.allocate(values.length, 'f32');
    backend.write(storage, Float32Array.from(values));
    return storage;
  };
  const numbers = async (storage: Storage) => [
    ...(await backend.read(storage)),
  ];

  it('writes, copies and reads any range', async () => {
    const a = floats([1, 2, 3, 4, 5]);
    const b = floats([0, 0, 0, 0, 0]);
    backend.write(a, Float32Array.of(9), 1);
    backend.copy(a, 1, b, 2, 3);
    expect(await numbers(a)).toEqual([1, 9, 3, 4, 5]);
    expect(await numbers(b)).toEqual([0, 0, 9, 3, 4]);
    // Ranges of one tensor that overlap.
    backend.copy(a, 0, a, 1, 4);
    expect(await numbers(a)).toEqual([1, 1, 9, 3, 4]);
  });

  it('reads what is longer than a pinned buffer', async () => {
    const values = Float32Array.from({ length: 5_000_001 }, (_, i) => i % 997);
    const storage = backend.allocate(values.length, 'f32');
    backend.write(storage, values);
    const got = await backend.read(storage);
    expect(Buffer.compare(bytesOf(got), bytesOf(values))).toBe(0);
  });

  it('counts memory, and hands freed memory out again', () => {
    const first = backend.allocate(100, 'f32');
    expect(backend.memory()).toMatchObject({ bytesInUse: 400, allocations: 1 });
    backend.free(first);
    backend.free(first);
    const created = backend.buffersCreated;
    backend.allocate(100, 'f32');
    expect(backend.buffersCreated).toBe(created);
    expect(backend.memory()).toEqual({
      bytesInUse: 400,
      peakBytes: 400,
      allocations: 2,
    });
    expect(() => backend.write(first, new Float32Array(1))).toThrow(
      TensorStateError,
    );
  });

  it('says that memory is out', async () => {
    expect(() => backend.allocate(2 ** 30, 'f32')).toThrow(OutOfMemoryError);
    const small = new FakeCuda().open({ limitBytes: 2 ** 26 });
    expect(() => small.allocate(2 ** 25, 'f32')).toThrow(
      'the limit is 67108864 bytes',
    );
    await small.destroy();
  });

  it('refuses data of another type and ranges outside', () => {
    const storage = backend.allocate(4, 'bf16');
    expect(() => backend.write(storage, new Float32Array(4))).toThrow(
      DTypeError,
    );
    expect(() => backend.write(storage, new Uint16Array(4), 1)).toThrow(
      'elements 1 to 5 must lie in the 4',
    );
    const other = backend.allocate(4, 'f16');
    expect(() => backend.copy(storage, 0, other, 0, 4)).toThrow(DTypeError);
  });

  it('poisons new memory when told to', async () => {
    const poisoned = new FakeCuda().open({ poison: true });
    const read = async (dtype: 'f32' | 'f16' | 'i32') =>
      (await poisoned.read(poisoned.allocate(3, dtype)))[2];
    expect(await read('f32')).toBeNaN();
    expect(await read('f16')).toBe(0x7fff);
    expect(await read('i32')).toBe(-(2 ** 31));
    await poisoned.destroy();
  });

  it('refuses f64 and widths that fit no tile, with the reason', () => {
    const spec = (shape: number[], dtype: 'f32' | 'f64' = 'f32') => ({
      shape,
      dtype,
    });
    expect(backend.supports('add', { a: spec([1], 'f64') }, {})).toMatch(/f64/);
    const attention = (width: number) =>
      backend.supports(
        'attention',
        {
          q: spec([1, 1, width]),
          k: spec([1, 1, width]),
          v: spec([1, 1, 64]),
        },
        {},
      );
    expect(attention(576)).toBe(true);
    expect(attention(4096)).toMatch(/shared memory/);
  });

  it('frees all that it made', async () => {
    floats([1]);
    await run(backend, 'add');
    backend.record(() => {}).free();
    await backend.destroy();
    expect(cuda.memory.size).toBe(0);
    // The primary context is released, and functions belong to modules; the
    // fake counts both as handles.
    expect(() => backend.allocate(1, 'f32')).toThrow('was destroyed');
    await backend.destroy();
  });

  it('fails every call once the device is lost', async () => {
    const storage = floats([1]);
    cuda.eventStatus = 719;
    await expect(backend.read(storage)).rejects.toThrow(DeviceLostError);
    cuda.eventStatus = 0;
    expect(() => backend.allocate(1, 'f32')).toThrow(DeviceLostError);
  });
});

describe.skipIf(!isLinux)('a recording', () => {
  let cuda: FakeCuda;
  let backend: CudaBackend;
  let scope: Scope;

  beforeEach(() => {
    cuda = new FakeCuda();
    backend = cuda.open({ poison: true });
    scope = new Scope(backend);
  });
  afterEach(() => backend.destroy());

  const tensor = (...values: number[]) =>
    scope.tensor(Float32Array.from(values), [values.length], 'f32');

  it('runs once when it is made, and again with each replay', async () => {
    const [x, y] = [tensor(1, 2), tensor(0, 0)];
    const recording = backend.record(() => {
      scope.run(operators.add, { a: x, b: y }, {});
      backend.copy(x.storage, 0, y.storage, 0, 2);
    });
    expect(cuda.ran).toEqual(['add']);
    expect([...(await scope.read(y))]).toEqual([1, 2]);
    backend.write(x.storage, Float32Array.of(7, 8));
    expect(recording.replay()).toBe(true);
    expect(cuda.ran).toEqual(['add', 'add']);
    expect([...(await scope.read(y))]).toEqual([7, 8]);
    recording.free();
    expect(recording.replay()).toBe(false);
  });

  it('lets the host write tensors that it makes, once', async () => {
    const target = tensor(0, 0);
    let index: ReturnType<typeof tensor> | undefined;
    const recording = backend.record(() => {
      // Its memory is that of a tensor that was used and freed before.
      const inner = new Scope(backend);
      const first = inner.run(operators.add, { a: target, b: target }, {}).y;
      backend.clear(first);
      inner.free();
      index = tensor(3, 4);
      backend.copy(index.storage, 0, target.storage, 0, 2);
    });
    expect([...(await scope.read(target))]).toEqual([3, 4]);
    backend.write(target.storage, Float32Array.of(0, 0));
    recording.replay();
    expect([...(await scope.read(target))]).toEqual([3, 4]);
    if (index) backend.write(index.storage, Float32Array.of(5, 6));
    recording.replay();
    expect([...(await scope.read(target))]).toEqual([5, 6]);
  });

  it('keeps what the host wrote inside, though it was freed there', async () => {
    const [x, y] = [tensor(1, 2), tensor(0, 0)];
    let address = 0;
    const recording = backend.record(() => {
      const inner = new Scope(backend);
      const data = Float32Array.of(3, 4);
      const index = inner.tensor(data, [2], 'f32');
      address = addressOf(index.storage);
      backend.copy(index.storage, 0, y.storage, 0, 2);
      inner.free();
      // Written by what is recorded, which needs memory of its own.
      for (let i = 0; i < 3; i++) {
        const { y: sum } = scope.run(operators.add, { a: x, b: x }, {});
        backend.clear(sum);
      }
    });
    backend.write(y.storage, Float32Array.of(0, 0));
    recording.replay();
    expect([...(await scope.read(y))]).toEqual([3, 4]);
    recording.free();
    expect(addressOf(tensor(1, 2).storage)).toBe(address);
  });

  it('does not replay onto memory that was freed', () => {
    const [x, y] = [tensor(1, 2), tensor(0, 0)];
    const recording = backend.record(() => {
      scope.run(operators.add, { a: x, b: y }, {});
    });
    y.free();
    expect(recording.replay()).toBe(false);
    expect(cuda.ran).toEqual(['add']);
  });

  it('keeps its own memory from others until it is freed', () => {
    const [x, y] = [tensor(1, 2), tensor(0, 0)];
    let address = 0;
    const recording = backend.record(() => {
      const inner = new Scope(backend);
      const { y: sum } = inner.run(operators.add, { a: x, b: y }, {});
      address = addressOf(sum.storage);
      inner.free();
    });
    expect(addressOf(tensor(1, 2).storage)).not.toBe(address);
    recording.free();
    expect(addressOf(tensor(1, 2).storage)).toBe(address);
  });

  it('is freed with the backend, and may be freed behind it', async () => {
    const recording = backend.record(() => {});
    await backend.destroy();
    expect(cuda.memory.size).toBe(0);
    recording.free();
    expect(() => recording.replay()).toThrow('was destroyed');
  });

  it('refuses to wait inside, and is dropped when its body fails', () => {
    const x = tensor(1);
    const body = () => {
      void backend.read(x.storage).catch(() => {});
      throw new Error('no more');
    };
    expect(() => backend.record(body)).toThrow('no more');
    expect(() => backend.record(() => backend.record(() => {}))).toThrow(
      'must not happen while work is recorded',
    );
    backend.record(() => {}).free();
  });
});

const bytesOf = ({ buffer }: ArrayBufferView) => Buffer.from(buffer);

const addressOf = (storage: Storage) =>
  (storage as unknown as { pointer: number }).pointer;

async function run(backend: Backend, name: 'add'): Promise<void> {
  const scope = new Scope(backend);
  const a = scope.tensor(Float32Array.of(1), [1], 'f32');
  scope.run(operators[name], { a, b: a }, {});
  scope.free();
}
