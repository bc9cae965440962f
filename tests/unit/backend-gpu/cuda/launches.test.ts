/** Training steps of long contexts: every launch must be one that a card takes. */
import {
  Documents,
  Model,
  modelParameters,
  preset,
  Scope,
  Trainer,
} from '@asa/core';
import { describe, expect, it } from 'vitest';
import { FakeCuda } from './fake-cuda';

const isLinux = process.platform === 'linux';

describe.skipIf(!isLinux)('launches of a training step', () => {
  it.each([
    ['340m-asa', 4, 8192],
    ['340m-asa', 1, 131_072],
    ['340m-nsa', 1, 131_072],
    ['340m-full', 1, 131_072],
    ['tiny-nsa', 1, 2 ** 20],
  ])(
    '%s, %i rows of %i tokens',
    { timeout: 120_000 },
    async (name, rows, context) => {
      const cuda = new FakeCuda(true);
      cuda.capacity = 2 ** 44;
      const backend = cuda.open();
      const config = preset(name, { context });
      const scope = new Scope(backend);
      const empty = modelParameters(config).map(
        ({ name, shape }) => [name, scope.empty(shape, 'bf16')] as const,
      );
      const model = new Model(backend, config, new Map(empty));
      const tokens = new Int32Array((rows + 1) * context + 1);
      const trainer = new Trainer(model, Documents.of([tokens]), {
        steps: 1,
        context,
        rows,
        schedule: { kind: 'constant', peak: 1e-4, warmup: 0 },
      });
      await trainer.step().catch(() => {});
      expect(cuda.refused).toBeUndefined();
      expect(trainer.steps).toBe(1);
      expect(cuda.ran.at(-1)).toBe('adamw');
      if (name === '340m-full') {
        // Residuals, and gradients of what several layers read, are added by
        // the products and norms that make them.
        expect(cuda.ran).not.toContain('add');
      }
      await backend.destroy();
    },
  );
});
