import { openCpu } from '@asa/backend-cpu';
import { type Backend, MemoryFolder, type Model } from '@asa/core';
import { beforeEach, describe, expect, test } from 'vitest';
import { f16ToF32, f32ToF16 } from '../../../packages/core/src/half';
import {
  backpropagate,
  countedTargets,
  type Example,
  GradientSum,
  LossError,
  losses,
  type StepEvent,
  type TrainConfigInput,
  type TrainEvent,
  Trainer,
  type TrainOptions,
  train,
} from '../../../packages/core/src/train';
import { bitsOf, documentsOf, newModel, tiny } from './models';

const config: TrainConfigInput = {
  seed: 11,
  steps: 6,
  context: 8,
  rows: 3,
  schedule: { kind: 'cosine', peak: 0.02, warmup: 2 },
};
const documents = documentsOf(19, 3, 8, 30, 5);

let backend: Backend;
beforeEach(async () => {
  backend = await openCpu({ poison: true });
});

const inUse = () => backend.memory().bytesInUse;

const write = (model: Model, name: string, change: (x: number) => number) => {
  const tensor = model.parameters.get(name)!;
  return backend.read(tensor.storage).then((data) => {
    backend.write(tensor.storage, Float32Array.from(data, change));
  });
};

async function collect(
  trainer: Trainer,
  options?: TrainOptions,
): Promise<TrainEvent[]> {
  const events: TrainEvent[] = [];
  for await (const event of train(trainer, options)) events.push(event);
  return events;
}

const stepsOf = (events: TrainEvent[]) =>
  events
    .filter((event): event is StepEvent => event.kind === 'step')
    .map(({ tokensPerSecond: _, ...event }) => event);

describe('loss and gradients', () => {
  const examples: Example[] = [
    { tokens: [1, 2, 3, 4, 5], targets: [2, 3, 4, 5, -1] },
    { tokens: [6, 7], targets: [7, 8] },
    { tokens: [9, 10, 11], targets: [-1, 11, 12] },
  ];

  async function gradientsOf(model: Model, passes: Example[][]) {
    const share = 1 / countedTargets(passes.flat());
    const sum = new GradientSum(backend);
    for (const pass of passes) {
      const { loss, gradients } = backpropagate(model, pass, share);
      loss.free();
      sum.add(gradients);
    }
    const values = new Map<string, number[]>();
    for (const [name, { storage }] of sum.tensors) {
      values.set(name, [...(await backend.read(storage))]);
    }
    sum.empty();
    return values;
  }

  test('passes that are summed give the gradient of one big pass', async () => {
    const model = await newModel(backend, tiny(), 'f64');
    const [a, b, c] = examples as [Example, Example, Example];
    const whole = await gradientsOf(model, [[a, b, c]]);
    expect(whole.size).toBe(model.parameters.size);
    // Passes of unequal size: the mean is over targets, not over passes.
    for (const passes of [
      [[a], [b], [c]],
      [[c, a], [b]],
    ]) {
      for (const [name, values] of await gradientsOf(model, passes)) {
        const want = whole.get(name)!;
        values.forEach((value, i) => {
          expect(Math.abs(value - want[i]!), name).toBeLessThan(1e-15);
        });
      }
    }
  });

  test('the loss of a target that is not counted is 0, and it changes no gradient', async () => {
    const model = await newModel(backend, tiny(), 'f64');
    const found = await losses(model, examples);
    expect([...found].map((nats) => nats > 0)).toEqual(
      examples.flatMap(({ targets }) =>
        [...(targets as number[])].map((t) => t !== -1),
      ),
    );
    const [a] = examples as [Example];
    const shorter = { tokens: [1, 2, 3, 4], targets: [2, 3, 4, 5] };
    const [full, cut] = [
      await gradientsOf(model, [[a]]),
      await gradientsOf(model, [[shorter]]),
    ];
    for (const [name, values] of full) {
      values.forEach((value, i) => {
        expect(Math.abs(value - cut.get(name)![i]!), name).toBeLessThan(1e-15);
      });
    }
  });

  test('packed documents give the losses that they give alone', async () => {
    const model = await newModel(backend);
    const together = await losses(model, examples);
    const alone: number[] = [];
    for (const example of examples)
      alone.push(...(await losses(model, [example])));
    expect([...together]).toEqual(alone);
  });
});

describe('a step', () => {
  test('lowers the loss and reports the schedule, tokens and epoch', async () => {
    const trainer = new Trainer(await newModel(backend), documents, {
      ...config,
      steps: 40,
      rows: 5,
    });
    const events = stepsOf(await collect(trainer));
    expect(events.map(({ step }) => step)).toEqual(
      Array.from({ length: 40 }, (_, i) => i + 1),
    );
    expect(events[0]!.loss).toBeCloseTo(Math.log(13), 1);
    expect(events[39]!.loss).toBeLessThan(1.5);
    expect(events.slice(0, 3).map(({ learningRate }) => learningRate)).toEqual([
      0.01,
      0.02,
      expect.closeTo(0.02, 3),
    ]);
    expect(events[39]!.tokens).toBeGreaterThan(40 * 5 * 4);
    expect(events[39]!.epoch).toBeGreaterThan(2);
    for (const { gradientNorm } of events)
      expect(gradientNorm).toBeGreaterThan(0);
  });

  test.each([
    ['f32', undefined],
    ['f32', 1],
    ['bf16', 2],
  ] as const)(
    'frees all it used: %s, %s rows a pass',
    async (dtype, microRows) => {
      const model = await newModel(backend, tiny(), dtype);
      // The model makes its rotary frequencies at the first pass, and keeps them.
      await losses(model, [{ tokens: [1], targets: [2] }]);
      const empty = inUse();
      const trainer = new Trainer(model, documents, { ...config, microRows });
      const before = inUse();
      for (let i = 0; i < 5; i++) {
        await trainer.step();
        expect(inUse()).toBe(before);
      }
      trainer.free();
      expect(inUse()).toBe(empty);
      model.free();
      expect(inUse()).toBe(0);
    },
  );

  test('decays matrices alone, or every parameter', async () => {
    const after = async (change: Partial<TrainConfigInput>) => {
      const model = await newModel(backend);
      const trainer = new Trainer(model, documents, { ...config, ...change });
      await trainer.step();
      return bitsOf(model.parameters);
    };
    const none = await after({ weightDecay: 0 });
    const matrices = await after({ weightDecay: 0.5 });
    const all = await after({ weightDecay: 0.5, decay: 'all' });
    const changed = (other: Record<string, string>) =>
      Object.keys(none).filter((name) => none[name] !== other[name]);
    const vectors = Object.keys(none).filter((name) =>
      /norm|bias|logits/.test(name),
    );
    expect(vectors.length).toBeGreaterThan(4);
    // These start at 0, where there is nothing to decay yet.
    const zeros = /compress_(latent|rope).logits|gate_proj.bias/;
    expect(changed(all)).toEqual(
      Object.keys(none).filter((name) => !zeros.test(name)),
    );
    expect(changed(matrices)).toEqual(
      Object.keys(none).filter((name) => !vectors.includes(name)),
    );
  });

  test('clips the global norm: Adam’s second moment sees the clipped gradient', async () => {
    const moments = async (clip: number | null) => {
      const trainer = new Trainer(await newModel(backend), documents, {
        ...config,
        clip,
      });
      const { gradientNorm } = await trainer.step();
      let sum = 0;
      for (const v of trainer.optimizer.v.values()) {
        for (const value of await backend.read(v.storage)) sum += value / 0.05;
      }
      return { gradientNorm, norm: Math.sqrt(sum) };
    };
    const free = await moments(null);
    expect(free.norm).toBeCloseTo(free.gradientNorm, 5);
    const clipped = await moments(0.01);
    expect(clipped.gradientNorm).toBe(free.gradientNorm);
    expect(clipped.norm).toBeCloseTo(0.01, 6);
  });

  test('a 16-bit model gathers updates that are smaller than its own steps', async () => {
    const model = await newModel(backend, tiny(), 'bf16');
    const slow = { kind: 'constant', peak: 1e-4 } as const;
    const trainer = new Trainer(model, documents, {
      ...config,
      steps: 60,
      weightDecay: 0,
      schedule: slow,
    });
    // 1 in bf16 moves by 1/256 at least: 20 steps of 1e-4 must not show yet.
    const norm = model.parameters.get('model.norm.weight')!;
    const before = [...(await backend.read(norm.storage))];
    for (let i = 0; i < 10; i++) await trainer.step();
    expect([...(await backend.read(norm.storage))]).toEqual(before);
    for (let i = 0; i < 50; i++) await trainer.step();
    expect([...(await backend.read(norm.storage))]).not.toEqual(before);
  });
});

describe('loss scaling of f16', () => {
  const half = () => newModel(backend, tiny(), 'f16');
  const scaled = (initial: number, growEvery = 500) => ({
    ...config,
    steps: 40,
    rows: 5,
    lossScale: { initial, growEvery },
  });

  test('halves until no gradient overflows, and loses no row', async () => {
    const trainer = new Trainer(await half(), documents, scaled(2 ** 40));
    const { lossScale, ...first } = await trainer.step();
    expect(lossScale).toBeLessThan(2 ** 30);
    expect(Math.log2(lossScale!) % 1).toBe(0);
    const settled = new Trainer(await half(), documents, scaled(lossScale!));
    const { tokensPerSecond: _, ...want } = await settled.step();
    expect({ ...first, lossScale, tokensPerSecond: 0 }).toEqual({
      ...want,
      tokensPerSecond: 0,
    });
    expect(await bitsOf(trainer.optimizer.masters)).toEqual(
      await bitsOf(settled.optimizer.masters),
    );
  });

  test('keeps small gradients that f16 alone would lose', async () => {
    const count = async (initial: number) => {
      const model = await half();
      // Gradients of the layers below become 2^10 times smaller.
      const head = model.parameters.get('lm_head.weight')!;
      const wide = f16ToF32((await backend.read(head.storage)) as Uint16Array);
      backend.write(head.storage, f32ToF16(wide.map((x) => x / 1024)));
      const trainer = new Trainer(model, documents, scaled(initial));
      await trainer.step();
      const m = trainer.optimizer.m.get('model.layers.0.mlp.up_proj.weight')!;
      const values = [...(await backend.read(m.storage))];
      return values.filter((value) => value !== 0).length;
    };
    expect(await count(2 ** 16)).toBeGreaterThan((await count(1)) + 10);
  });

  test('doubles after a while, learns, and goes on from a checkpoint as it was', async () => {
    const options = scaled(256, 3);
    const trainer = new Trainer(await half(), documents, options);
    const folder = new MemoryFolder();
    const events: StepEvent[] = [];
    for (let i = 0; i < 40; i++) {
      if (i === 7) await trainer.save(folder);
      events.push(await trainer.step());
    }
    const scales = events.map(({ lossScale }) => lossScale);
    expect(scales.slice(0, 7)).toEqual([256, 256, 256, 512, 512, 512, 1024]);
    expect(events[39]!.loss).toBeLessThan(1.5);
    const resumed = await Trainer.resume(
      folder,
      backend,
      documents,
      options,
      'f16',
    );
    for (let i = 7; i < 12; i++) {
      expect(stepsOf([await resumed.step()])).toEqual(stepsOf([events[i]!]));
    }
    await expect(
      Trainer.resume(folder, backend, documents, options),
    ).rejects.toThrow(/dtype: must be as in the checkpoint, f16, .* got f32/);
  });
});

describe('a loss that is lost', () => {
  test('names the step and leaves the weights and the checkpoint', async () => {
    const model = await newModel(backend);
    const trainer = new Trainer(model, documents, config);
    const folder = new MemoryFolder();
    const checkpoints = { folder, every: 2 };
    for await (const event of train(trainer, { checkpoints })) {
      if (event.kind === 'checkpoint') break;
    }
    await write(model, 'lm_head.weight', () => Number.NaN);
    const before = await bitsOf(model.parameters);
    const used = inUse();
    const failed = collect(trainer, { checkpoints });
    await expect(failed).rejects.toThrow(LossError);
    await expect(failed).rejects.toThrow(
      /step 3: the loss must be finite, got NaN/,
    );
    expect(await bitsOf(model.parameters)).toEqual(before);
    expect(inUse()).toBe(used);
    const resumed = await Trainer.resume(folder, backend, documents, config);
    expect(resumed.steps).toBe(2);
  });

  test('an infinite gradient is seen where the loss is still finite', async () => {
    const model = await newModel(backend);
    const trainer = new Trainer(model, documents, config);
    await write(model, 'model.norm.weight', () => 1e-38);
    await write(model, 'lm_head.weight', (x) => x * 1e38);
    const failed = trainer.step();
    await expect(failed).rejects.toThrow(
      /step 1: the gradient norm must be finite, got Infinity/,
    );
  });

  test('a jump is refused where the run asks for it', async () => {
    const model = await newModel(backend);
    const trainer = new Trainer(model, documents, { ...config, spike: 0.5 });
    await trainer.step();
    await write(model, 'lm_head.weight', (x) => x * 500);
    await expect(trainer.step()).rejects.toThrow(
      /step 2: the loss must stay within 0.5 nats/,
    );
  });
});

test('refuses what does not fit the model or the data', async () => {
  const model = await newModel(backend);
  const make = (change: Partial<TrainConfigInput>, data = documents) =>
    new Trainer(model, data, { ...config, ...change });
  expect(() => make({ context: 17 })).toThrow(/context: must be at most .* 16/);
  expect(() => make({ rows: 500 })).toThrow(
    /must fill the 500 rows .* got \d+/,
  );
  expect(() => make({}, documentsOf(1))).toThrow(/at least 2 tokens/);
  expect(() => make({}, documentsOf(0))).toThrow(/at least 2 tokens/);
});

describe('train', () => {
  test('evaluates and saves when due, and behind the last step', async () => {
    const trainer = new Trainer(await newModel(backend), documents, config);
    const folder = new MemoryFolder();
    const events = await collect(trainer, {
      until: 5,
      evaluation: { documents: documentsOf(20, 12), every: 3 },
      checkpoints: { folder, every: 2 },
    });
    expect(events.map(({ kind, step }) => `${kind} ${step}`)).toEqual([
      'step 1',
      'step 2',
      'checkpoint 2',
      'step 3',
      'evaluation 3',
      'step 4',
      'checkpoint 4',
      'step 5',
      'evaluation 5',
      'checkpoint 5',
      'end 5',
    ]);
    expect(events.at(-1)).toEqual({ kind: 'end', step: 5, reason: 'done' });
    expect(events[4]).toMatchObject({ tokens: 30, units: 'documents' });
    expect(JSON.parse(JSON.stringify(events))).toEqual(events);
  });

  test('a signal lets the step end, saves, and stops', async () => {
    const trainer = new Trainer(await newModel(backend), documents, config);
    const folder = new MemoryFolder();
    const controller = new AbortController();
    const kinds: string[] = [];
    const options = {
      signal: controller.signal,
      checkpoints: { folder, every: 100 },
    };
    for await (const event of train(trainer, options)) {
      kinds.push(`${event.kind} ${event.step}`);
      if (event.step === 2) controller.abort();
    }
    expect(kinds).toEqual(['step 1', 'step 2', 'checkpoint 2', 'end 2']);
    const resumed = await Trainer.resume(folder, backend, documents, config);
    expect(resumed.steps).toBe(2);
  });

  test('refuses a folder with another run, and intervals below 1', async () => {
    const folder = new MemoryFolder();
    const checkpoints = { folder, every: 1 };
    const first = new Trainer(await newModel(backend), documents, config);
    await collect(first, { until: 1, checkpoints });
    const second = new Trainer(await newModel(backend), documents, config);
    await expect(collect(second, { checkpoints })).rejects.toThrow(
      /holds checkpoints of another run/,
    );
    await expect(
      collect(second, { checkpoints: { folder, every: 0 } }),
    ).rejects.toThrow(/checkpoints.every must be a positive integer, got 0/);
  });
});
