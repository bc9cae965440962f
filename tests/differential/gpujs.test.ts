import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { type GpuJsBackend, openGpuJs } from '@asa/backend-gpu/gpujs';
import {
  type Backend,
  Engine,
  type ModelConfig,
  type OperatorName,
  operators,
} from '@asa/core';
import { openFolder } from '@asa/core/node';
import { differential } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { offerSoftwareGpu } from '../unit/backend-gpu/offer-software-gpu';
import { whyNoSoftwareGpu } from '../unit/backend-gpu/software-gpu';
import {
  gla,
  gqa,
  linear,
  mla,
  nsa,
  randomTokens,
  tinyConfig,
  tinyModel,
} from '../unit/engine/tiny-models';

const noGpu = whyNoSoftwareGpu();

/** WebAssembly is the fastest of them where there is no GPU. */
const modes = [
  { mode: 'wasm', cases: 12, length: 64, missing: undefined },
  { mode: 'cpu', cases: 6, length: 64, missing: undefined },
  { mode: 'webgpu', cases: 3, length: 16, missing: noGpu },
] as const;

const shape = { blocks: [4, 2, 8], sharing: 4, count: 4 } as const;
const models = [
  ['ASA', tinyConfig('GL', { G: gla(shape), L: mla(9) })],
  ['NSA', tinyConfig('N', { N: nsa(shape, 7, 'independent') })],
  ['gated linear', tinyConfig('RF', { R: linear, F: gqa() })],
] as const;

/** 40 tokens behind a prompt of 50, greedy: ring, blocks and leaders turn. */
async function continued(backend: Backend, config: ModelConfig) {
  const model = await tinyModel(backend, config);
  const engine = Engine.from(model);
  const tokens = await greedy(engine, randomTokens(50, 8), 40);
  engine.free();
  model.free();
  return tokens;
}

async function greedy(
  engine: Engine,
  prompt: string | ArrayLike<number>,
  maxTokens: number,
) {
  const session = engine.session();
  const tokens: number[] = [];
  const options = { prompt, temperature: 0, maxTokens, chunk: 23 };
  for await (const event of engine.generate(session, options)) {
    if ('token' in event) tokens.push(event.token);
  }
  session.free();
  return tokens;
}

const embedded = fileURLToPath(
  new URL('../../packages/cli/models/default', import.meta.url),
);

/** What the model that comes with the command tells. */
async function story(backend: Backend, length: number) {
  const engine = await Engine.open(await openFolder(embedded), backend);
  const tokens = await greedy(engine, 'Once upon a time', length);
  engine.free();
  return tokens;
}

describe.each(modes)('gpu.js, $mode', ({ mode, cases, length, missing }) => {
  let backend: GpuJsBackend;
  let reference: Backend;

  beforeAll(async () => {
    reference = await openCpu({ poison: true });
    if (missing) return;
    const offer = mode === 'webgpu' ? { offer: offerSoftwareGpu } : {};
    backend = await openGpuJs({ mode, software: true, host: offer });
  });

  afterAll(async () => {
    await backend?.destroy();
    await reference.destroy();
  });

  describe.skipIf(missing)(`compared with the oracle ${missing ?? ''}`, () => {
    test.each(models)('generates with %s', async (_, config) => {
      const tokens = await continued(backend, config);
      expect(tokens).toHaveLength(40);
      expect(tokens).toEqual(await continued(reference, config));
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test('generates with the embedded model', {
      timeout: 120_000,
    }, async () => {
      const tokens = await story(backend, length);
      expect(tokens).toHaveLength(length);
      expect(tokens).toEqual(await story(reference, length));
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test.for(Object.keys(operators) as OperatorName[])(
      'computes %s',
      async (operator) => {
        const outcome = await differential(
          { backend, reference },
          operator,
          'f32',
          // Most casts are to or from types that gpu.js lacks.
          { seed: 5, cases: operator === 'cast' ? 20 : cases },
        );
        expect(outcome.detail).toBeUndefined();
        expect(outcome.cases).toBeGreaterThan(0);
        // Casts to what gpu.js lacks are the only calls refused.
        if (operator !== 'cast') expect(outcome.missing).toBe(0);
        expect(backend.memory().bytesInUse).toBe(0);
      },
    );
  });
});
