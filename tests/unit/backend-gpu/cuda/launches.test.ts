/** Launches of whole steps, on a device that only counts. */
import {
  Documents,
  Engine,
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

describe.skipIf(!isLinux)('launches of a decoding step', () => {
  /** One step of 340m-asa behind 2,048 tokens: its kernels, and which start early. */
  async function decoded(capability: number, version = 12_030) {
    const cuda = new FakeCuda(true);
    cuda.capacity = 2 ** 44;
    cuda.version = version;
    const backend = cuda.open({ capability });
    const config = preset('340m-asa', { context: 4096 });
    const scope = new Scope(backend);
    const weights = modelParameters(config).map(
      ({ name, shape }) => [name, scope.empty(shape, 'bf16')] as const,
    );
    const model = new Model(backend, config, new Map(weights));
    const engine = Engine.from(model);
    const session = engine.session({ capacity: 4096 });
    await session.extend(new Array(2048).fill(5));
    cuda.ran.length = 0;
    cuda.early.length = 0;
    const events = engine.generate(session, {
      prompt: [3],
      maxTokens: 1,
      temperature: 0,
      eos: [],
    });
    for await (const _ of events);
    const count = (name: string) =>
      cuda.ran.filter((kernel) => kernel === name).length;
    const early = new Set(cuda.early);
    await backend.destroy();
    return { count, early, total: cuda.ran.length, layers: config.layers };
  }

  it('are one for what can be done together', async () => {
    const { count, total, layers } = await decoded(90);
    // Of the layer's input, heads' values, of those, two of the MLP; then logits.
    expect(count('fewRows')).toBe(5 * layers + 1);
    expect(count('rope')).toBe(layers);
    // The cache's rows, and the lists of every other layer.
    expect(count('scatterRows')).toBe(1.5 * layers);
    expect(count('gatherRows')).toBe(1);
    expect(count('hopperDecode')).toBe(1.5 * layers);
    expect(total).toBe(352);
  });

  it('start early where cards and captures know of that', async () => {
    expect((await decoded(90)).early).toEqual(new Set(['fewRows']));
    expect((await decoded(90, 12_020)).early.size).toBe(0);
    expect((await decoded(80)).early.size).toBe(0);
    expect((await decoded(100)).early.size).toBe(0);
  });
});
