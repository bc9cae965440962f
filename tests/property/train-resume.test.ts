import { openCpu } from '@asa/backend-cpu';
import { type Backend, MemoryFolder } from '@asa/core';
import { fc, test } from '@fast-check/vitest';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import {
  Batches,
  Documents,
  type TrainConfigInput,
  Trainer,
} from '../../packages/core/src/train';
import { bitsOf, newModel } from '../unit/train/models';

let backend: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
});
afterAll(() => backend.destroy());

/** Documents of tokens 0 to 12; at least one has something to predict. */
const corpora = fc
  .array(fc.array(fc.nat(12), { maxLength: 40, size: 'max' }), {
    minLength: 1,
    maxLength: 12,
  })
  .filter((documents) => documents.some(({ length }) => length > 1))
  .map((documents) => Documents.of(documents));

const rowLength = (row: readonly { tokens: ArrayLike<number> }[]) =>
  row.reduce((sum, { tokens }) => sum + tokens.length, 0);

describe('batches', () => {
  test.prop([corpora, fc.integer({ min: 1, max: 17 }), fc.nat()])(
    'an epoch predicts every token once, in rows within the context',
    (documents, context, seed) => {
      const batches = new Batches(documents, { context, seed });
      const rows = batches.take(batches.rowsInEpoch);
      const places = rows
        .flat()
        .flatMap(({ targets }) =>
          Array.from(targets, (_, i) => targets.byteOffset / 4 + i),
        );
      const want = Array.from(documents.tokens.keys()).filter(
        (place) => !documents.starts.includes(place),
      );
      expect(places.sort((a, b) => a - b)).toEqual(want);
      expect(Math.max(...rows.map(rowLength))).toBeLessThanOrEqual(context);
      for (const { tokens, targets } of rows.flat()) {
        expect(targets.byteOffset).toBe(tokens.byteOffset + 4);
        expect(targets.length).toBe(tokens.length);
      }
    },
  );
});

const configs: fc.Arbitrary<TrainConfigInput> = fc.record({
  seed: fc.nat(),
  steps: fc.constant(20),
  context: fc.integer({ min: 1, max: 16 }),
  rows: fc.integer({ min: 1, max: 3 }),
  microRows: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined }),
  schedule: fc.constantFrom(
    { kind: 'constant', peak: 0.01 },
    { kind: 'cosine', peak: 0.02, warmup: 3, floor: 0.001 },
    { kind: 'warmup-stable-decay', peak: 0.01, warmup: 2, decay: 17 },
  ),
  decay: fc.constantFrom('all', 'matrices'),
  clip: fc.constantFrom(null, 0.1, 1),
});

describe('training', () => {
  test.prop([corpora, configs, fc.nat(3), fc.integer({ min: 1, max: 3 })], {
    numRuns: 25,
  })(
    'a run broken anywhere ends in the bits of a whole one',
    async (documents, config, before, after) => {
      const { context, rows, seed = 0 } = config;
      const { rowsInEpoch } = new Batches(documents, { context, seed });
      fc.pre(rowsInEpoch >= rows);
      const whole = new Trainer(await newModel(backend), documents, config);
      const broken = new Trainer(await newModel(backend), documents, config);
      const folder = new MemoryFolder();
      for (let i = 0; i < before; i++) await broken.step();
      await broken.save(folder);
      const resumed = await Trainer.resume(folder, backend, documents, config);
      for (let i = 0; i < before + after; i++) await whole.step();
      for (let i = 0; i < after; i++) await resumed.step();
      for (const part of ['masters', 'm', 'v'] as const) {
        expect(await bitsOf(resumed.optimizer[part])).toEqual(
          await bitsOf(whole.optimizer[part]),
        );
      }
      for (const trainer of [whole, broken, resumed]) {
        trainer.free();
        trainer.model.free();
      }
      expect(backend.memory().bytesInUse).toBe(0);
    },
  );
});
