import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import {
  ArgumentError,
  CompileError,
  DeviceLostError,
  DTypeError,
  OutOfMemoryError,
  operators,
  Scope,
  TensorStateError,
  UnsupportedError,
} from '@asa/core';
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  test,
} from 'vitest';
import { softwareGpu, whyNoSoftwareGpu } from './software-gpu';

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`the WebGPU backend ${reason ?? ''}`, () => {
  let backend: WebGpuBackend;
  let scope: Scope;
  beforeAll(async () => {
    backend = await openWebGpu({ gpu: softwareGpu(), limitBytes: 2 ** 20 });
  }, 30_000);
  beforeEach(() => {
    scope = new Scope(backend);
  });
  afterEach(() => scope.free());
  afterAll(() => backend.destroy());

  const ones = (count: number) => new Float32Array(count).fill(1);

  test('counts bytes in use, their peak and allocations', () => {
    const before = backend.memory();
    const a = backend.allocate(10, 'f32');
    const b = backend.allocate(3, 'i32');
    backend.free(a);
    backend.free(a);
    const { bytesInUse, peakBytes, allocations } = backend.memory();
    expect(bytesInUse - before.bytesInUse).toBe(12);
    expect(peakBytes).toBeGreaterThanOrEqual(before.bytesInUse + 52);
    expect(allocations - before.allocations).toBe(2);
    backend.free(b);
    expect(backend.memory().bytesInUse).toBe(before.bytesInUse);
  });

  test('refuses memory past its limit, and gives it once there is room', () => {
    const half = backend.allocate(2 ** 17, 'f32');
    const ask = () => backend.allocate(3 * 2 ** 16, 'f32');
    expect(ask).toThrow(OutOfMemoryError);
    expect(ask).toThrow(/no memory for 786432 bytes, 524288 bytes are in use/);
    backend.free(half);
    backend.free(ask());
  });

  test('hands the buffers of freed tensors out again', () => {
    backend.free(backend.allocate(100, 'f32'));
    const { buffersCreated } = backend;
    for (let i = 0; i < 1000; i++) backend.free(backend.allocate(100, 'f32'));
    expect(backend.buffersCreated).toBe(buffersCreated);
  });

  test('a write does not overtake commands that read what was there', async () => {
    const a = scope.tensor(ones(5), [5], 'f32');
    const twice = scope.run(operators.add, { a, b: a }, {}).y;
    backend.write(a.storage, Float32Array.of(5, 6, 7, 8, 9));
    const after = scope.run(operators.add, { a, b: twice }, {}).y;
    backend.write(a.storage, Float32Array.of(1, 2), 3);
    expect([...(await scope.read(twice))]).toEqual([2, 2, 2, 2, 2]);
    expect([...(await scope.read(after))]).toEqual([7, 8, 9, 10, 11]);
    expect([...(await scope.read(a))]).toEqual([5, 6, 7, 1, 2]);
  });

  test('copies parts of one tensor to another and within one', async () => {
    const data = Int32Array.from({ length: 9 }, (_, i) => i);
    const a = scope.tensor(data, [9], 'i32');
    const b = scope.tensor(new Int32Array(9), [9], 'i32');
    backend.copy(a.storage, 2, b.storage, 5, 3);
    backend.copy(a.storage, 0, a.storage, 1, 8);
    expect([...(await scope.read(b))]).toEqual([0, 0, 0, 0, 0, 2, 3, 4, 0]);
    expect([...(await scope.read(a))]).toEqual([0, 0, 1, 2, 3, 4, 5, 6, 7]);
  });

  test('a tensor without elements can be written, read and worked on', async () => {
    const a = scope.tensor(ones(0), [0, 4], 'f32');
    const { y } = scope.run(operators.add, { a, b: a }, {});
    expect(await scope.read(y)).toEqual(new Float32Array(0));
  });

  test('more rows than one dimension has workgroups', async () => {
    const rows = 70_001;
    const a = scope.tensor(ones(rows), [rows, 1], 'f32');
    const weight = scope.tensor(ones(1), [1], 'f32');
    const { y } = scope.run(operators.rmsNorm, { x: a, weight }, { eps: 3 });
    const got = await scope.read(y);
    expect(got.every((value) => Math.abs(value - 0.5) < 1e-6)).toBe(true);
    // The rows that the second layer of workgroups has, too.
    expect(got).toHaveLength(rows);
  });

  test('refuses data of another type, and ranges outside', () => {
    const a = scope.empty([4], 'f32');
    const write = (data: Float32Array | Int32Array, offset = 0) =>
      backend.write(a.storage, data, offset);
    expect(() => write(new Int32Array(4))).toThrow(DTypeError);
    expect(() => write(ones(4), 1)).toThrow(ArgumentError);
    expect(() => write(ones(1), -1)).toThrow(ArgumentError);
    const other = {} as typeof a.storage;
    expect(() => backend.free(other)).toThrow(TensorStateError);
  });

  test.each(['f64', 'bf16'] as const)('says why it cannot do %s', (dtype) => {
    const spec = { shape: [2], dtype };
    const answer = backend.supports('add', { a: spec, b: spec }, {});
    expect(answer).toBe(`WebGPU has no ${dtype}, and a is ${dtype}`);
  });

  test('a tensor larger than a binding is refused with both sizes', () => {
    const spec = { shape: [2 ** 20, 2 ** 14], dtype: 'f32' as const };
    const answer = backend.supports('add', { a: spec, b: spec }, {});
    expect(answer).toMatch(/a has 68719476736 bytes, .* binds at most \d+/);
  });

  test('a kernel that does not compile gives the log, and breaks nothing', async () => {
    const y = scope.tensor(ones(4), [4], 'f32');
    backend.run({
      kernel: 'broken',
      constants: {},
      bindings: { y: { tensor: y, access: 'read_write' } },
      grid: [1],
      source: () => ({ threads: 1, body: 'y[0] = missing;' }),
    });
    const error = await scope.read(y).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CompileError);
    expect((error as CompileError).log).toMatch(/missing/);
    expect((error as CompileError).source).toMatch(/y\[0\] = missing/);
    await backend.synchronize().catch(() => {});
    const { y: sum } = scope.run(operators.add, { a: y, b: y }, {});
    expect([...(await scope.read(sum))]).toEqual([2, 2, 2, 2]);
  });
});

describe.skipIf(reason)(`opening WebGPU ${reason ?? ''}`, () => {
  test('says what it passed over when hardware is asked for', async () => {
    const opening = openWebGpu({ gpu: softwareGpu(), hardwareOnly: true });
    await expect(opening).rejects.toThrow(UnsupportedError);
    await expect(opening).rejects.toThrow(/passed over .*software/);
  });

  test('says so where there is no adapter', async () => {
    const gpu = { requestAdapter: async () => null } as unknown as GPU;
    await expect(openWebGpu({ gpu })).rejects.toThrow(/found no adapter/);
  });

  test('refuses a limit that is no number', async () => {
    await expect(openWebGpu({ limitBytes: Number.NaN })).rejects.toThrow(
      ArgumentError,
    );
  });

  test('a lost device is an error of its own, and the next opens', async () => {
    const backend = await openWebGpu({ gpu: softwareGpu() });
    const storage = backend.allocate(4, 'f32');
    backend.device.destroy();
    await backend.device.lost;
    await expect(backend.read(storage)).rejects.toThrow(DeviceLostError);
    expect(() => backend.allocate(1, 'f32')).toThrow(/open the backend again/);
    const next = await openWebGpu({ gpu: softwareGpu() });
    await next.destroy();
  });

  test('is unusable after it was destroyed, and harmless to free', async () => {
    const backend = await openWebGpu({ gpu: softwareGpu() });
    const storage = backend.allocate(4, 'f32');
    await backend.destroy();
    await backend.destroy();
    backend.free(storage);
    expect(() => backend.allocate(1, 'f32')).toThrow(TensorStateError);
    await expect(backend.read(storage)).rejects.toThrow(TensorStateError);
  });

  test('opens and closes again and again', async () => {
    for (let i = 0; i < 10; i++) {
      const backend = await openWebGpu({ gpu: softwareGpu() });
      await backend.destroy();
    }
  }, 60_000);
});
