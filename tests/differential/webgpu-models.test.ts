import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import {
  type Backend,
  backpropagate,
  Cache,
  type HostArray,
  type Model,
  type ModelConfig,
  Scope,
  type Tensor,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  onSystemAdapter,
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';
import {
  gla,
  gqa,
  linear,
  mla,
  nsa,
  tinyConfig,
  tinyModel,
  vocabularySize,
} from '../unit/engine/tiny-models';

const shape = { blocks: [4, 2, 8], sharing: 4, count: 4 } as const;
const configs: readonly (readonly [string, ModelConfig])[] = [
  ['asa', tinyConfig('GL', { G: gla(shape), L: mla(9) })],
  ['nsa', tinyConfig('N', { N: nsa(shape, 7, 'shared') })],
  ['full', tinyConfig('F', { F: gqa() })],
  ['linear', tinyConfig('GR', { G: gla(shape), R: linear })],
];

/** Largest RMS error of a whole model, as a share of the result's own RMS. */
const allowed = { logits: 2e-5, gradients: 1e-4 };

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`whole models on WebGPU ${reason ?? ''}`, () => {
  let gpu: WebGpuBackend;
  let cpu: Backend;
  beforeAll(async () => {
    gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    cpu = await openCpu({ poison: true });
  }, 60_000);
  afterAll(async () => {
    await gpu.destroy();
    await cpu.destroy();
  });

  // Compiling for a software adapter takes most of it; on SwiftShader so much
  // that one model has to do.
  const timeout = 300_000;
  const tried = onSystemAdapter ? configs : configs.slice(0, 1);

  test.each(tried)(
    '%s: losses and gradients',
    { timeout },
    async (_, config) => {
      const inUse = gpu.memory().bytesInUse;
      const examples = [tokensOf(37, 1), tokensOf(20, 2)].map((tokens) => ({
        tokens,
        targets: [...tokens.slice(1), -1],
      }));
      const run = async (backend: Backend) => {
        const model = await tinyModel(backend, config);
        const { loss, gradients } = backpropagate(model, examples, 1 / 55);
        const results = new Map<string, HostArray>();
        for (const [name, tensor] of [['loss', loss] as const, ...gradients]) {
          results.set(name, await backend.read(tensor.storage));
          tensor.free();
        }
        model.free();
        return results;
      };
      const [got, want] = [await run(gpu), await run(cpu)];
      expect([...got.keys()]).toEqual([...want.keys()]);
      for (const [name, values] of want) {
        const limit = name === 'loss' ? allowed.logits : allowed.gradients;
        expect(difference(got.get(name)!, values), name).toBeLessThan(limit);
      }
      expect(gpu.memory().bytesInUse).toBe(inUse);
    },
  );

  test.each(tried)(
    '%s: a prefill in chunks and single tokens give the logits of one call',
    { timeout },
    async (_, config) => {
      const tokens = tokensOf(43, 3);
      const want = await logits(await tinyModel(cpu, config), tokens, [43]);
      const model = await tinyModel(gpu, config);
      for (const chunks of [[43], [17, 19, 1, 1, 5]]) {
        const got = await logits(model, tokens, chunks);
        expect(difference(got, want)).toBeLessThan(allowed.logits);
      }
      model.free();
    },
  );

  test('a warm step makes no device buffer', { timeout }, async () => {
    const model = await tinyModel(gpu, configs[0]![1]);
    const tokens = tokensOf(64, 4);
    await logits(model, tokens, [32, ...Array(32).fill(1)]);
    const { buffersCreated } = gpu;
    await logits(model, tokens, [32, ...Array(32).fill(1)]);
    expect(gpu.buffersCreated).toBe(buffersCreated);
    model.free();
  });
});

/** Logits of all tokens, taken in by chunks. */
async function logits(
  model: Model,
  tokens: readonly number[],
  chunks: readonly number[],
): Promise<Float32Array> {
  const { backend, config, dtype } = model;
  const cache = new Cache(backend, config, {
    slots: 1,
    capacity: tokens.length,
    dtype,
  });
  const result = new Float32Array(tokens.length * vocabularySize);
  let past = 0;
  for (const count of chunks) {
    const scope = new Scope(backend);
    const batch = model.batch([
      { tokens: tokens.slice(past, past + count), past },
    ]);
    const hidden: Tensor = model.forward(scope, batch, {
      cache: { cache, slots: [0] },
    });
    const part = await scope.read(model.logits(scope, hidden));
    result.set(part as Float32Array, past * vocabularySize);
    past += count;
    scope.free();
    batch.free();
  }
  cache.free();
  return result;
}

function tokensOf(count: number, seed: number): number[] {
  return Array.from(
    { length: count },
    (_, i) => (i * i * 7 + i * 3 + seed * 5) % vocabularySize,
  );
}

/** RMS of the difference over the RMS of what is wanted. */
function difference(got: HostArray, want: HostArray): number {
  let [error, size] = [0, 0];
  want.forEach((value, i) => {
    error += (got[i]! - value) ** 2;
    size += value ** 2;
  });
  return Math.sqrt(error / Math.max(size, 1e-30));
}
