import {
  explainGpuJs,
  type GpuJsBackend,
  type GpuJsOptions,
  openGpuJs,
} from '@asa/backend-gpu/gpujs';
import {
  ArgumentError,
  type Backend,
  CompileError,
  DTypeError,
  OutOfMemoryError,
  operators,
  Scope,
  TensorStateError,
} from '@asa/core';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { offerSoftwareGpu } from './offer-software-gpu';
import { whyNoSoftwareGpu } from './software-gpu';

const offerNothing = () => Promise.reject(new Error('no adapter\n at x'));

let opened: GpuJsBackend | undefined;
afterEach(async () => {
  await opened?.destroy();
  opened = undefined;
});

async function open(options: GpuJsOptions) {
  const passed: string[] = [];
  opened = await openGpuJs({
    ...options,
    onPass: (name, reason) => passed.push(`${name}: ${reason}`),
  });
  return { backend: opened, passed };
}

/** `a + a` on the device, and back. */
async function doubled(backend: Backend, values: readonly number[]) {
  const scope = new Scope(backend);
  try {
    const a = scope.tensor(Float32Array.from(values), [values.length], 'f32');
    const { y } = scope.run(operators.add, { a, b: a }, {});
    return [...(await scope.read(y))];
  } finally {
    scope.free();
  }
}

describe('the mode', () => {
  test('is WebAssembly where there is no GPU, and says why', async () => {
    const { backend, passed } = await open({ host: { offer: offerNothing } });
    expect(backend.mode).toBe('wasm');
    expect(backend.description).toBe('gpu.js, wasm: WebAssembly');
    expect(passed).toEqual(['webgpu: no adapter']);
  });

  test('is the one that was asked for, or an error with its reason', async () => {
    const { backend, passed } = await open({ mode: 'cpu' });
    expect([backend.mode, passed]).toEqual(['cpu', []]);
    await expect(
      openGpuJs({ mode: 'webgpu', host: { offer: offerNothing } }),
    ).rejects.toThrow('open: backend gpujs cannot run it, webgpu: no adapter');
  });

  test('is none where gpu.js does not load', async () => {
    const load = () => Promise.reject(new Error('gpu.js is broken'));
    const host = { load, offer: offerNothing };
    await expect(openGpuJs({ host })).rejects.toThrow(
      'webgpu: no adapter; wasm: gpu.js is broken; cpu: gpu.js is broken',
    );
    expect(await explainGpuJs({ host })).toEqual([
      { name: 'webgpu', reason: 'no adapter' },
      { name: 'wasm', reason: 'gpu.js is broken' },
      { name: 'cpu', reason: 'gpu.js is broken' },
    ]);
  });

  test('is explained without being opened', async () => {
    expect(await explainGpuJs({ host: { offer: offerNothing } })).toEqual([
      { name: 'webgpu', reason: 'no adapter' },
      { name: 'wasm' },
      { name: 'cpu' },
    ]);
  });

  test('is not taken where its first product is wrong', async () => {
    const host = { offer: offerNothing, load: wrong };
    await expect(openGpuJs({ mode: 'cpu', host })).rejects.toThrow(
      'a product of whole numbers is wrong',
    );
  });
});

/** gpu.js with a slip in the text of matmul. */
function wrong() {
  return changed((source) => source.replace('let sum = 0', 'let sum = 1'));
}

/** What it changes of gpu.js. */
interface Creator {
  createKernel(source: string, settings: object): unknown;
}

/** gpu.js that gets other sources than it was given. */
async function changed(
  change: (source: string) => string,
): Promise<{ default: object }> {
  const { default: real } = await import('gpu.js');
  const Original = real.GPU as unknown as new () => Creator;
  class Changed extends Original {
    override createKernel(source: string, settings: object) {
      return super.createKernel(change(source), settings);
    }
  }
  return { default: { ...real, GPU: Changed } };
}

describe('memory', () => {
  test.each(['wasm', 'cpu'] as const)(
    'is counted, limited, and given back (%s)',
    async (mode) => {
      const { backend } = await open({ mode, limitBytes: 4000 });
      const { allocations } = backend.memory();
      const a = backend.allocate(10, 'f32');
      const b = backend.allocate(990, 'i32');
      expect(() => backend.allocate(1, 'f32')).toThrow(OutOfMemoryError);
      expect(backend.memory()).toMatchObject({
        bytesInUse: 4000,
        peakBytes: 4000,
        allocations: allocations + 2,
      });
      backend.write(a, Float32Array.of(1, 2, 3), 4);
      backend.copy(a, 5, a, 0, 2);
      expect([...(await backend.read(a))]).toEqual([
        2, 3, 0, 0, 1, 2, 3, 0, 0, 0,
      ]);
      backend.free(a);
      backend.free(a);
      expect(backend.memory().bytesInUse).toBe(3960);
      expect(() => backend.write(a, Float32Array.of(1))).toThrow(
        TensorStateError,
      );
      await backend.destroy();
      expect(() => backend.allocate(1, 'f32')).toThrow(TensorStateError);
      backend.free(b);
    },
  );

  test('does not see what the caller writes into its array later', async () => {
    const { backend } = await open({ mode: 'cpu' });
    const a = backend.allocate(3, 'f32');
    const data = Float32Array.of(1, 2, 3);
    backend.write(a, data);
    data.fill(9);
    expect([...(await backend.read(a))]).toEqual([1, 2, 3]);
    // Nor does the backend see what he does to what he read.
    (await backend.read(a)).fill(7);
    expect([...(await backend.read(a))]).toEqual([1, 2, 3]);
  });

  test('holds integers that f32 holds, and refuses others', async () => {
    const { backend } = await open({ mode: 'wasm' });
    const i = backend.allocate(3, 'i32');
    const exact = Int32Array.of(2 ** 24, -(2 ** 24), 2 ** 24 - 1);
    backend.write(i, exact);
    expect(await backend.read(i)).toEqual(exact);
    expect(() => backend.write(i, Int32Array.of(2 ** 24 + 1))).toThrow(
      'write: gpu.js holds integers in f32, exact from -2^24 to 2^24, got 16777217',
    );
  });

  test('refuses limits, types and ranges that make no sense', async () => {
    await expect(openGpuJs({ limitBytes: Number.NaN })).rejects.toThrow(
      ArgumentError,
    );
    const { backend } = await open({ mode: 'cpu' });
    expect(() => backend.allocate(1, 'f16')).toThrow(DTypeError);
    const a = backend.allocate(2, 'f32');
    const i = backend.allocate(2, 'i32');
    expect(() => backend.write(a, Int32Array.of(1))).toThrow(DTypeError);
    expect(() => backend.write(a, new Float32Array(3))).toThrow(ArgumentError);
    expect(() => backend.copy(a, 0, i, 0, 1)).toThrow(DTypeError);
    expect(() => backend.copy(a, 1, a, 0, 2)).toThrow(ArgumentError);
    expect(() => backend.free({})).toThrow(TensorStateError);
  });
});

test('what it cannot run has a reason', async () => {
  const { backend } = await open({ mode: 'cpu' });
  const supports = (shape: number[], dtype: 'f32' | 'f64') =>
    backend.supports('add', { a: { shape, dtype }, b: { shape, dtype } }, {});
  expect(supports([2, 3], 'f32')).toBe(true);
  expect(supports([2, 3], 'f64')).toBe('gpu.js has no f64, and a is f64');
  expect(supports([2 ** 20, 1], 'f32')).toBe(
    'gpu.js starts at most 524280 rows, and a has 1048576',
  );
  const x = { shape: [1], dtype: 'f32' } as const;
  expect(backend.supports('cast', { x }, { dtype: 'bf16' })).toBe(
    'gpu.js has no bf16, and bf16 is asked for',
  );
  const q = { shape: [65_536, 1, 1], dtype: 'f32' } as const;
  expect(backend.supports('linearAttention', { q }, {})).toBe(
    'gpu.js starts at most 65535 rows, and q has 65536',
  );
  expect(backend.supports('attention', { q }, {})).toBe(true);
});

test('an error in a kernel comes with each read behind it', async () => {
  const load = () =>
    changed((source) => source.replace('return a[', 'return missing.a['));
  const { backend } = await open({ mode: 'cpu', host: { load } });
  const before = backend.allocate(1, 'f32');
  backend.write(before, Float32Array.of(5));
  expect([...(await backend.read(before))]).toEqual([5]);
  await expect(doubled(backend, [1, 2])).rejects.toThrow();
  await expect(backend.read(before)).rejects.toThrow();
  await expect(backend.synchronize()).rejects.toThrow();
  backend.free(before);
  expect(backend.memory().bytesInUse).toBe(0);
});

/** What gpu.js's types leave out. */
interface Shared {
  readonly WebGPUContext: { acquire(): Promise<{ device: GPUDevice }> };
}

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`WebGPU in software ${reason ?? ''}`, () => {
  const onGpu = {
    mode: 'webgpu',
    software: true,
    host: { offer: offerSoftwareGpu },
  } as const;

  /** The buffers of gpu.js's device from now on. */
  async function liveBuffers() {
    await offerSoftwareGpu();
    const { default: shared } = await import('gpu.js');
    const { device } = await (
      shared as unknown as Shared
    ).WebGPUContext.acquire();
    const live = new Set<GPUBuffer>();
    const create = device.createBuffer.bind(device);
    device.createBuffer = (descriptor) => {
      const buffer = create(descriptor);
      const destroy = buffer.destroy.bind(buffer);
      live.add(buffer);
      buffer.destroy = () => {
        live.delete(buffer);
        destroy();
      };
      return buffer;
    };
    return { live, device };
  }

  test('is passed over unless software is asked for', async () => {
    const { backend, passed } = await open({
      host: { offer: offerSoftwareGpu },
    });
    expect(backend.mode).toBe('wasm');
    expect(passed).toHaveLength(1);
    expect(passed[0]).toMatch(/^webgpu: gpu.js takes .*software/);
  });

  test('gives every buffer back', async () => {
    const { live, device } = await liveBuffers();
    const { backend } = await open(onGpu);
    expect(backend.description).toMatch(/^gpu.js, webgpu: .*software/);
    expect(await doubled(backend, [1, 2, 3])).toEqual([2, 4, 6]);
    await backend.synchronize();
    const warm = live.size;
    expect(warm).toBeGreaterThan(0);
    for (let n = 1; n < 20; n++) await doubled(backend, [1, 2, 3]);
    await backend.synchronize();
    expect(live.size).toBe(warm);
    // A large one leaves nothing of its size behind either.
    const large = Array.from({ length: 2 ** 19 }, (_, i) => i % 100);
    expect((await doubled(backend, large)).at(-1)).toBe(2 * 87);
    await backend.synchronize();
    const bytes = [...live].reduce((sum, { size }) => sum + size, 0);
    expect(bytes).toBeLessThan(2 ** 19);
    expect(await doubled(backend, [5])).toEqual([10]);
    await backend.destroy();
    expect(live.size).toBe(0);
    expect((await device.lost).reason).toBe('destroyed');
  });

  test('shares one device among backends, and gives it back last', async () => {
    const { device } = await liveBuffers();
    const first = await openGpuJs(onGpu);
    const second = await openGpuJs(onGpu);
    await first.destroy();
    expect(await doubled(second, [3])).toEqual([6]);
    await second.destroy();
    expect((await device.lost).reason).toBe('destroyed');
    const third = await openGpuJs(onGpu);
    expect(await doubled(third, [4])).toEqual([8]);
    await third.destroy();
  });

  test('reports what its compiler says', async () => {
    const load = () =>
      changed((source) =>
        // A helper that WGSL has no word for, of a name that it accepts.
        source.replace('return a[this.thread.x]', 'return Math.acosh(a[0], 1)'),
      );
    const { backend } = await open({ ...onGpu, host: { ...onGpu.host, load } });
    const failed = await doubled(backend, [1]).catch((error: unknown) => error);
    expect(failed).toBeInstanceOf(CompileError);
    expect(failed).toMatchObject({
      kernel: 'add',
      log: expect.stringContaining('acosh'),
      source: expect.stringContaining('@compute'),
    });
  });

  test('reports what the device complains of', async () => {
    const { device } = await liveBuffers();
    const { backend } = await open(onGpu);
    device.createBuffer({ size: 4, usage: 0 });
    // The device says so in its own time.
    await vi.waitFor(
      () =>
        expect(backend.synchronize()).rejects.toThrow(
          /^gpujs: the device reports, Buffer usages must not be 0/,
        ),
      10_000,
    );
  });
});
