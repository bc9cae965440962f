/** The CUDA driver's kernels against the oracle, on the emulated device. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  Engine,
  type ModelConfig,
  type OperatorName,
  operators,
  type TrainConfigInput,
  Trainer,
} from '@asa/core';
import { openFolder } from '@asa/core/node';
import {
  compareGolden,
  differential,
  listGolden,
  verifyAll,
} from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { CudaBackend } from '../../packages/backend-gpu/src/cuda/cuda-backend';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import {
  gla,
  mla,
  nsa,
  randomTokens,
  rmsRatio,
  tinyConfig,
  tinyModel,
} from '../unit/engine/tiny-models';
import { documentsOf, newModel } from '../unit/train/models';

const CASES = 8;
const STEPS = 3;
const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);

const shape = { blocks: [4, 2, 8], sharing: 4, count: 4 } as const;
const models = [
  ['ASA', tinyConfig('GL', { G: gla(shape), L: mla(9) })],
  ['NSA', tinyConfig('N', { N: nsa(shape, 7, 'independent') })],
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

const training: TrainConfigInput = {
  seed: 11,
  steps: STEPS,
  context: 16,
  rows: 2,
  schedule: { kind: 'constant', peak: 0.02, warmup: 0 },
};
const documents = documentsOf(19, 3, 8, 30, 5);

/** The loss of each step, and the parameters in the end. */
async function trained(backend: Backend) {
  const trainer = new Trainer(await newModel(backend), documents, training);
  const losses: number[] = [];
  for (let step = 0; step < STEPS; step++) {
    losses.push((await trainer.step()).loss);
  }
  const parameters = new Map<string, Float32Array>();
  for (const [name, { storage }] of trainer.model.parameters) {
    parameters.set(name, Float32Array.from(await backend.read(storage)));
  }
  trainer.free();
  trainer.model.free();
  return { losses, parameters };
}

const reason = whyNoEmulator();

describe.skipIf(reason)(`CUDA, emulated ${reason ?? ''}`, () => {
  let backend: CudaBackend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openEmulated();
    reference = await openCpu({ poison: true });
  }, 120_000);

  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  describe.each(['f32', 'f16', 'bf16'] as const)('%s', (dtype) => {
    test.for(Object.keys(operators) as OperatorName[])(
      'computes %s as the oracle does',
      async (operator) => {
        const outcome = await differential(
          { backend, reference },
          operator,
          dtype,
          { seed: 5, cases: CASES },
        );
        expect(outcome.detail).toBeUndefined();
        expect(outcome.cases).toBeGreaterThan(0);
        // No backend casts to f64 that computes in f32.
        if (operator !== 'cast') expect(outcome.missing).toBe(0);
        expect(backend.memory().bytesInUse).toBe(0);
      },
    );
  });

  test.each(models)(
    'generates with %s as the oracle does, from recordings',
    async (_, config) => {
      const record = vi.spyOn(backend, 'record');
      const tokens = await continued(backend, config);
      expect(tokens).toHaveLength(40);
      expect(tokens).toEqual(await continued(reference, config));
      // Each is replayed: there are far fewer than steps.
      expect(record).toHaveBeenCalled();
      expect(record.mock.calls.length).toBeLessThan(20);
      expect(backend.memory().bytesInUse).toBe(0);
      record.mockRestore();
    },
  );

  test('trains as the oracle does', async () => {
    const [got, want] = [await trained(backend), await trained(reference)];
    for (const [step, loss] of want.losses.entries()) {
      expect(got.losses[step]).toBeCloseTo(loss, 4);
    }
    for (const [name, values] of want.parameters) {
      const error = rmsRatio(got.parameters.get(name)!, values);
      expect(error, name).toBeLessThan(1e-4);
    }
    expect(backend.memory().bytesInUse).toBe(0);
  });

  // The path is to 1,031 rows of one sequence, whose differences added up.
  test.each(['31:1:2:2:2', undefined])(
    'has gradients of linear attention, path %s',
    async (path) => {
      const report = await verifyAll({
        ...{ backend, reference, path, seed: 1, cases: 40 },
        ...{ suites: ['laws'], dtypes: ['f32'] },
        only: 'linearAttention: gradients',
      });
      expect(report.counts).toMatchObject({ ok: 1, mismatch: 0 });
      expect(backend.memory().bytesInUse).toBe(0);
    },
  );

  test.skipIf(!existsSync(shared))(
    'gives the operators of other implementations',
    async () => {
      const golden = await openFolder(shared);
      const rows = [];
      for (const entry of await listGolden(golden)) {
        if (entry.kind !== 'operator') continue;
        rows.push(...(await compareGolden(backend, golden, entry)));
      }
      expect(rows.filter(({ status }) => status !== 'ok')).toEqual([]);
      expect(rows.length).toBeGreaterThan(10);
    },
  );
});
