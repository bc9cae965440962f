/** One model on several backends: the numbers, the memory, what is refused. */
import { openCpu } from '@asa/backend-cpu';
import { type Backend, MemoryFolder, type Storage } from '@asa/core';
import { type AnyKernel, withKernels } from '@asa/core/verify';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  LossError,
  type TrainConfigInput,
  Trainer,
} from '../../../packages/core/src/train';
import { bitsOf, documentsOf, newModel, tiny } from './models';

const config: TrainConfigInput = {
  seed: 11,
  steps: 8,
  context: 8,
  rows: 6,
  schedule: { kind: 'cosine', peak: 0.02, warmup: 2 },
};
const documents = documentsOf(19, 3, 8, 30, 5);
type DType = 'f32' | 'f64' | 'f16' | 'bf16';

let backends: [Backend, ...Backend[]];
beforeEach(async () => {
  const open = () => openCpu({ poison: true });
  backends = [await open(), await open(), await open(), await open()];
});
afterEach(async () => {
  for (const backend of backends) await backend.destroy();
});

const inUse = () => backends.map((backend) => backend.memory().bytesInUse);
const nothing = [0, 0, 0, 0];

async function trainerOn(
  count: number,
  change: Partial<TrainConfigInput> = {},
  dtype: DType = 'f32',
): Promise<Trainer> {
  const [first, ...others] = backends;
  const model = await newModel(first, tiny(), dtype);
  const replicas = others.slice(0, count - 1);
  return new Trainer(model, documents, { ...config, ...change }, { replicas });
}

async function stepOf(trainer: Trainer) {
  const { tokensPerSecond: _, ...event } = await trainer.step();
  return event;
}

async function run(
  count: number,
  change: Partial<TrainConfigInput> = {},
  dtype?: DType,
) {
  const trainer = await trainerOn(count, change, dtype);
  const events = [];
  for (let i = 0; i < 3; i++) events.push(await stepOf(trainer));
  const { masters, m, v } = trainer.optimizer;
  const bits = await Promise.all([masters, m, v].map(bitsOf));
  trainer.free();
  trainer.model.free();
  expect(inUse()).toEqual(nothing);
  return { events, bits };
}

describe('the numbers', () => {
  test.each([
    [2, 3, 'f32'],
    [3, 2, 'f32'],
    [3, 2, 'bf16'],
    [2, 3, 'f16'],
    // The last pass is shorter.
    [2, 5, 'f32'],
  ] as const)(
    'of %i backends with one pass each, %i rows of %s, are those of one backend',
    async (count, microRows, dtype) => {
      expect(await run(count, { microRows }, dtype)).toEqual(
        await run(1, { microRows }, dtype),
      );
    },
  );

  test('with more passes differ in rounding alone', async () => {
    const one = await run(1, { microRows: 1 }, 'f64');
    const four = await run(4, { microRows: 1 }, 'f64');
    expect(four.bits).not.toEqual(one.bits);
    for (const [i, event] of one.events.entries()) {
      expect(four.events[i]?.loss).toBeCloseTo(event.loss, 12);
      expect(four.events[i]?.gradientNorm).toBeCloseTo(event.gradientNorm, 12);
    }
    expect(await run(4, { microRows: 1 }, 'f64')).toEqual(four);
  });

  test('without microRows every backend has its share of the rows', async () => {
    expect(await run(3)).toEqual(await run(1, { microRows: 2 }));
    // 1 each, and those that are left go around once more.
    expect(await run(4)).toEqual(await run(4, { microRows: 1 }));
  });

  test('follow weights that were written since the last step', async () => {
    const halve = async (count: number) => {
      const trainer = await trainerOn(count, { microRows: 3 });
      await trainer.step();
      for (const { storage } of trainer.model.parameters.values()) {
        const data = (await backends[0].read(storage)) as Float32Array;
        backends[0].write(
          storage,
          data.map((x) => x / 2),
        );
      }
      return stepOf(trainer);
    };
    expect(await halve(2)).toEqual(await halve(1));
  });
});

test('backends get their forward halves one by one, then the others by turns, and no wait', async () => {
  let reads = 0;
  const enqueued: string[] = [];
  const [first, ...replicas] = backends.slice(0, 3).map((backend, index) => {
    const noting =
      (half: string) =>
      (own: AnyKernel): AnyKernel =>
      (...call) => {
        enqueued.push(`${half} ${index} behind ${reads} reads`);
        own(...call);
      };
    const watched = withKernels(backend, {
      crossEntropy: noting('forward'),
      crossEntropyBackward: noting('backward'),
      gatherRowsBackward: noting('end'),
    });
    const read = (storage: Storage) => {
      reads += 1;
      return backend.read(storage);
    };
    return { ...watched, read };
  });
  const model = await newModel(first!);
  const short = { ...config, rows: 5, microRows: 1 };
  const trainer = new Trainer(model, documents, short, { replicas });
  reads = 0;
  await trainer.step();
  // The weights go by the host here, before all passes.
  const before = 2 * model.parameters.size;
  const round = (indexes: number[]) =>
    ['forward', 'backward', 'end'].flatMap((half) =>
      indexes.map((index) => `${half} ${index} behind ${before} reads`),
    );
  expect(enqueued).toEqual([...round([0, 1, 2]), ...round([0, 1])]);
});

test('copies that need no host are enqueued without a wait', async () => {
  const [first, second] = backends as [Backend, Backend];
  const read = [vi.spyOn(first, 'read'), vi.spyOn(second, 'read')];
  const received: number[] = [];
  for (const [at, backend] of [first, second].entries()) {
    backend.receive = (_from, body) => {
      let count = 0;
      body(() => {
        count += 1;
      });
      received.push(at, count);
      return true;
    };
  }
  const trainer = await trainerOn(2);
  // Nothing was copied, so the replica's weights are poison.
  await expect(trainer.step()).rejects.toThrow(LossError);
  const { size } = trainer.model.parameters;
  expect(received).toEqual([1, size, 0, size]);
  expect(read.map((spy) => spy.mock.calls.length)).toEqual([2, 1]);
  trainer.free();
  trainer.model.free();
  expect(inUse()).toEqual(nothing);
});

describe('memory', () => {
  test.each(['f32', 'bf16'] as const)(
    'of %s is freed by each step',
    async (dtype) => {
      const trainer = await trainerOn(3, { microRows: 1 }, dtype);
      // Rotary frequencies are made at the first pass, and kept.
      await trainer.step();
      const before = inUse();
      for (let i = 0; i < 3; i++) {
        await trainer.step();
        expect(inUse()).toEqual(before);
      }
      trainer.free();
      expect(inUse().slice(1)).toEqual([0, 0, 0]);
      trainer.model.free();
      expect(inUse()).toEqual(nothing);
    },
  );

  test.each([0, 1])(
    'is freed where backend %i has no more of it',
    async (at) => {
      const trainer = await trainerOn(2, { microRows: 1 });
      await trainer.step();
      const before = inUse();
      const [first, second] = backends as [Backend, Backend];
      const backend = [first, second][at]!;
      const bits = await bitsOf(trainer.model.parameters);
      // Every allocation in turn, up to a step that needs no more of them.
      const own = backend.allocate.bind(backend);
      let failures = 0;
      for (let left = 0; ; left += 37) {
        let count = left;
        backend.allocate = (...call) => {
          if (count-- === 0) throw new Error('no memory');
          return own(...call);
        };
        const outcome = await trainer.step().catch((error: Error) => error);
        backend.allocate = own;
        expect(inUse()).toEqual(before);
        if (!(outcome instanceof Error)) break;
        expect(outcome.message).toBe('no memory');
        expect(await bitsOf(trainer.model.parameters)).toEqual(bits);
        failures += 1;
      }
      expect(failures).toBeGreaterThan(10);
      trainer.free();
      trainer.model.free();
      expect(inUse()).toEqual(nothing);
    },
    60_000,
  );

  test('is freed where a trainer cannot be made', async () => {
    const [first, second, third] = backends as [Backend, Backend, Backend];
    const model = await newModel(first, tiny(), 'bf16');
    const before = inUse();
    const make = () =>
      new Trainer(model, documents, config, { replicas: [second, third] });
    for (const backend of [third, first]) {
      // Its first tensors are made, and then no more.
      const allocate = backend.allocate.bind(backend);
      let count = 5;
      backend.allocate = (...call) => {
        if (count-- === 0) throw new Error('no memory');
        return allocate(...call);
      };
      expect(make).toThrow('no memory');
      backend.allocate = allocate;
      expect(inUse()).toEqual(before);
    }
  });
});

describe('a step that is refused', () => {
  test('leaves the weights, and the next one goes on from them', async () => {
    const after = async (count: number) => {
      const trainer = await trainerOn(count, { microRows: 3, spike: 0.5 });
      await trainer.step();
      const { parameters } = trainer.model;
      const { storage } = parameters.get('lm_head.weight')!;
      const data = (await backends[0].read(storage)) as Float32Array;
      backends[0].write(
        storage,
        data.map((x) => x * 500),
      );
      const before = [await bitsOf(parameters), inUse()];
      await expect(trainer.step()).rejects.toThrow(LossError);
      expect([await bitsOf(parameters), inUse()]).toEqual(before);
      backends[0].write(storage, data);
      const event = await stepOf(trainer);
      return [event, await bitsOf(parameters)];
    };
    expect(await after(2)).toEqual(await after(1));
  });

  test('is one where a loss of a replica is lost', async () => {
    const trainer = await trainerOn(2, { microRows: 3 });
    const second = backends[1] as Backend;
    const own = second.read.bind(second);
    second.read = async (storage) => (await own(storage)).fill(Number.NaN);
    await expect(trainer.step()).rejects.toThrow(
      /loss must be finite, got NaN/,
    );
  });

  test('runs again with a smaller scale where f16 overflows', async () => {
    const lossScale = { initial: 2 ** 40 };
    const two = await run(2, { microRows: 3, lossScale }, 'f16');
    expect(two.events[0]?.lossScale).toBeLessThan(2 ** 30);
    expect(two).toEqual(await run(1, { microRows: 3, lossScale }, 'f16'));
  });
});

test.each(['f32', 'bf16'] as const)(
  'a run of %s that was broken ends in the bits of a whole one',
  async (dtype) => {
    const change = { microRows: 1 };
    const trainer = await trainerOn(3, change, dtype);
    const folder = new MemoryFolder();
    for (let i = 0; i < 2; i++) await trainer.step();
    await trainer.save(folder);
    const [first, ...others] = backends;
    const resumed = await Trainer.resume(
      folder,
      first,
      documents,
      { ...config, ...change },
      dtype,
      { replicas: others.slice(0, 2) },
    );
    for (let i = 0; i < 2; i++) {
      expect(await stepOf(resumed)).toEqual(await stepOf(trainer));
    }
    const bits = ({ optimizer: { masters, m, v } }: Trainer) =>
      Promise.all([masters, m, v].map(bitsOf));
    expect(await bits(resumed)).toEqual(await bits(trainer));
    for (const each of [trainer, resumed]) {
      each.free();
      each.model.free();
    }
    expect(inUse()).toEqual(nothing);
  },
);

test('refuses backends that are shared and passes that are too few', async () => {
  const [first, second] = backends as [Backend, Backend];
  const model = await newModel(first);
  const before = inUse();
  const make =
    (replicas: Backend[], change: Partial<TrainConfigInput> = {}) =>
    () =>
      new Trainer(model, documents, { ...config, ...change }, { replicas });
  const twice = /a backend of its own beside the model's, got one twice in/;
  expect(make([first])).toThrow(twice);
  expect(make([second, second])).toThrow(twice);
  expect(make([second], { microRows: 6 })).toThrow(
    /microRows: must cut a step's 6 rows into a pass for each of 2 backends, got 6, which makes 1; leave it out or take 3/,
  );
  expect(make([second], { rows: 1 })).toThrow(
    /rows: must be at least one for each of 2 backends, got 1/,
  );
  expect(inUse()).toEqual(before);
  // Alone it may be more than there are.
  expect(make([], { microRows: 60 })).not.toThrow();
});
