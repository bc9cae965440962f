import { explainTfjs, openTfjs, type TfjsBackend } from '@asa/backend-gpu/tfjs';
import { DTypeError, OutOfMemoryError, TensorStateError } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { afterEach, describe, expect, test } from 'vitest';

const missing = Object.assign(
  new Error("Cannot find package '@tensorflow/tfjs-node-gpu'"),
  { code: 'ERR_MODULE_NOT_FOUND' },
);

/** The packages that are really there, but for what a test says. */
function host(nodeGpu: () => Promise<unknown>, nodeVersion = '20.20.2') {
  return {
    nodeVersion,
    load: (name: string) =>
      name === '@tensorflow/tfjs-node-gpu' ? nodeGpu() : import(name),
  };
}

/** What tfjs-node-gpu does when it is imported: a backend of its own. */
async function standIn(): Promise<void> {
  await import('@tensorflow/tfjs-backend-cpu');
  tf.copyRegisteredKernels('cpu', 'tensorflow');
  const made = tf.findBackendFactory('cpu');
  tf.registerBackend('tensorflow', made);
}

let opened: TfjsBackend | undefined;
afterEach(async () => {
  await opened?.destroy();
  opened = undefined;
  if (tf.engine().registryFactory.tensorflow) tf.removeBackend('tensorflow');
});

async function open(options: Parameters<typeof openTfjs>[0]) {
  const passed: string[] = [];
  opened = await openTfjs({
    ...options,
    onPass: (name, reason) => passed.push(`${name}: ${reason}`),
  });
  return { backend: opened, passed };
}

describe('the engine', () => {
  test('is tfjs-node-gpu where that is installed', async () => {
    const { backend, passed } = await open({ host: host(standIn) });
    expect(backend.engine).toBe('tensorflow');
    expect(backend.description).toMatch(/^TensorFlow.js 4\..* node-gpu$/);
    expect(passed).toEqual([]);
  });

  test.each([
    [
      'is not installed',
      () => Promise.reject(missing),
      '20.20.2',
      'node-gpu: @tensorflow/tfjs-node-gpu is not installed',
    ],
    [
      'does not load',
      () =>
        Promise.reject(new Error('libtensorflow.so.2: no such file\n at x')),
      '20.20.2',
      'node-gpu: @tensorflow/tfjs-node-gpu does not load: libtensorflow.so.2: no such file',
    ],
    [
      'is too old for this Node.js',
      standIn,
      '23.1.0',
      'node-gpu: @tensorflow/tfjs-node-gpu works up to Node.js 22, this is 23.1.0',
    ],
  ])('is another where tfjs-node-gpu %s', async (_, nodeGpu, version, line) => {
    const { backend, passed } = await open({ host: host(nodeGpu, version) });
    expect(passed[0]).toBe(line);
    expect(['webgpu', 'wasm']).toContain(backend.engine);
  });

  test('is the one that was asked for, or an error with its reason', async () => {
    const { backend, passed } = await open({ engine: 'cpu' });
    expect([backend.engine, passed]).toEqual(['cpu', []]);
    const refused = openTfjs({
      engine: 'node-gpu',
      host: host(() => Promise.reject(missing)),
    });
    await expect(refused).rejects.toThrow(
      'open: backend tfjs cannot run it, node-gpu: @tensorflow/tfjs-node-gpu is not installed',
    );
  });

  test('is explained without being opened', async () => {
    const found = await explainTfjs({
      host: host(() => Promise.reject(missing)),
    });
    expect(found.map(({ name }) => name)).toEqual([
      'node-gpu',
      'webgpu',
      'wasm',
      'cpu',
    ]);
    expect(found[0]?.reason).toMatch(/not installed/);
    expect(found[2]).toEqual({ name: 'wasm' });
    expect(found[3]).toEqual({ name: 'cpu' });
  });
});

describe('memory', () => {
  test('is counted, limited, and given back to the last tensor', async () => {
    const before = tf.memory().numTensors;
    const { backend } = await open({ engine: 'wasm', limitBytes: 100 });
    const a = backend.allocate(10, 'f32');
    const b = backend.allocate(15, 'i32');
    expect(() => backend.allocate(1, 'f32')).toThrow(OutOfMemoryError);
    expect(backend.memory()).toEqual({
      bytesInUse: 100,
      peakBytes: 100,
      allocations: 2,
    });
    backend.write(a, Float32Array.of(1, 2, 3), 4);
    backend.copy(a, 5, a, 0, 2);
    expect([...(await backend.read(a))]).toEqual([
      2, 3, 0, 0, 1, 2, 3, 0, 0, 0,
    ]);
    backend.write(b, new Int32Array(15).fill(7));
    expect(await backend.read(b)).toEqual(new Int32Array(15).fill(7));
    backend.free(a);
    expect(() => backend.write(a, Float32Array.of(1))).toThrow(
      TensorStateError,
    );
    await backend.destroy();
    expect(tf.memory().numTensors).toBe(before);
    expect(() => backend.flush()).toThrow(TensorStateError);
  });

  test('holds no types that tfjs lacks', async () => {
    const { backend } = await open({ engine: 'cpu' });
    expect(() => backend.allocate(1, 'f16')).toThrow(DTypeError);
    expect(
      backend.supports('add', { a: { shape: [1], dtype: 'f64' } }, {}),
    ).toBe('TensorFlow.js has no f64, and a is f64');
    expect(
      backend.supports(
        'cast',
        { x: { shape: [1], dtype: 'f32' } },
        { dtype: 'bf16' },
      ),
    ).toBe('TensorFlow.js has no bf16, and bf16 is asked for');
  });
});
