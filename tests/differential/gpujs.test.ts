import { openCpu } from '@asa/backend-cpu';
import { type GpuJsBackend, openGpuJs } from '@asa/backend-gpu/gpujs';
import {
  type Backend,
  Engine,
  type ModelConfig,
  type OperatorName,
  operators,
} from '@asa/core';
import { differential } from '@asa/core/verify';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
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

const CASES = 20;

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
  const session = engine.session();
  const tokens: number[] = [];
  for await (const event of engine.generate(session, {
    prompt: randomTokens(50, 8),
    temperature: 0,
    maxTokens: 40,
    chunk: 23,
  })) {
    if ('token' in event) tokens.push(event.token);
  }
  session.free();
  engine.free();
  model.free();
  return tokens;
}

describe.each(['wasm', 'cpu'] as const)('gpu.js, %s', (mode) => {
  let backend: GpuJsBackend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openGpuJs({ mode });
    reference = await openCpu({ poison: true });
  });

  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  test.each(models)(
    'generates with %s as the oracle does',
    async (_, config) => {
      const tokens = await continued(backend, config);
      expect(tokens).toHaveLength(40);
      expect(tokens).toEqual(await continued(reference, config));
    },
  );

  test.for(Object.keys(operators) as OperatorName[])(
    'computes %s as the oracle does, and keeps no tensor',
    async (operator) => {
      const outcome = await differential(
        { backend, reference },
        operator,
        'f32',
        { seed: 5, cases: CASES },
      );
      expect(outcome.detail).toBeUndefined();
      expect(outcome.cases).toBeGreaterThan(0);
      if (operator !== 'cast') expect(outcome.missing).toBe(0);
    },
  );
});
