/**
 * Passes that are enqueued again from a recording, on the emulated card, beside
 * the same without recordings.
 */
import {
  type Backend,
  type Documents,
  LossError,
  OutOfMemoryError,
  type TrainConfigInput,
  Trainer,
} from '@asa/core';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { bitsOf, documentsOf, newModel, tiny } from '../unit/train/models';

const config: TrainConfigInput = {
  seed: 11,
  steps: 4,
  context: 16,
  rows: 4,
  microRows: 2,
  schedule: { kind: 'constant', peak: 0.02, warmup: 0 },
};
/** Every row is one piece of 16 tokens; or rows are pieces of all lengths. */
const even = documentsOf(161);
const uneven = documentsOf(19, 3, 8, 30, 5, 41, 27, 12, 15, 22);
const nsa = tiny({
  pattern: 'N',
  attention: {
    N: {
      ...{ kind: 'nsa', heads: 4, keyValueHeads: 2, headWidth: 4 },
      ...{ valueWidth: 4, window: 4 },
      compression: { kind: 'mean', length: 2, stride: 1 },
      selection: { blockSize: 2, count: 3, local: 1 },
    },
  },
});

interface Run {
  readonly documents?: Documents;
  readonly change?: Partial<TrainConfigInput>;
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  readonly model?: typeof nsa;
}
const onePass: Partial<TrainConfigInput> = { microRows: 4 };

/** Events and weights of some steps, and how many recordings each backend made. */
async function trained(
  [backend, ...replicas]: readonly [Backend, ...Backend[]],
  { documents = even, change = {}, dtype = 'f32', model: shape }: Run = {},
) {
  const all = [backend, ...replicas];
  const records = all.map((each) => each.record && vi.spyOn(each, 'record'));
  const model = await newModel(backend, shape, dtype);
  const settings = { ...config, ...change };
  const trainer = new Trainer(model, documents, settings, { replicas });
  const events = [];
  for (let i = 0; i < settings.steps; i++) {
    const { tokensPerSecond: _, ...event } = await trainer.step();
    events.push(event);
  }
  const weights = await bitsOf(model.parameters);
  trainer.free();
  model.free();
  for (const each of all) expect(each.memory().bytesInUse).toBe(0);
  const recordings = records.map((spy) => spy?.mock.calls.length ?? 0);
  for (const spy of records) spy?.mockRestore();
  return { events, weights, recordings };
}

/** `body` while backends record in another way, or not at all. */
async function recording<T>(
  backends: readonly Backend[],
  record: Backend['record'],
  body: () => Promise<T>,
): Promise<T> {
  const given = { value: record, configurable: true, writable: true };
  for (const each of backends) Object.defineProperty(each, 'record', given);
  try {
    return await body();
  } finally {
    for (const each of backends) Reflect.deleteProperty(each, 'record');
  }
}

const reason = whyNoEmulator();

describe.skipIf(reason)(`recorded training, emulated ${reason ?? ''}`, () => {
  let backend: Backend;
  let second: Backend;
  beforeEach(async () => {
    backend = await openEmulated({}, 0);
    second = await openEmulated({}, 1);
  }, 120_000);
  afterEach(async () => {
    await backend.destroy();
    await second.destroy();
  });

  const runs: Record<string, readonly [run: Run, recordings: number]> = {
    'one pass a step': [{ change: onePass }, 1],
    'two passes a step': [{}, 1],
    'three, of which the last one is smaller': [{ change: { rows: 5 } }, 4],
    NSA: [{ model: nsa }, 1],
    'lengths that do not repeat': [{ documents: uneven, change: onePass }, 0],
  };
  test.each(Object.entries(runs))(
    'has the bits of passes that are not recorded: %s',
    { timeout: 120_000 },
    async (_, [run, recordings]) => {
      const got = await trained([backend], run);
      const plain = () => trained([backend], run);
      const want = await recording([backend], undefined, plain);
      expect(want.recordings).toEqual([0]);
      expect(got).toEqual({ ...want, recordings: [recordings] });
    },
  );

  test('f16, where a gradient overflows', async () => {
    const lossScale = { initial: 2 ** 24, growthInterval: 2 };
    const run: Run = { dtype: 'f16', change: { ...onePass, lossScale } };
    const got = await trained([backend], run);
    const plain = () => trained([backend], run);
    const want = await recording([backend], undefined, plain);
    expect(got).toEqual({ ...want, recordings: [1] });
    expect(got.events[0]?.lossScale).toBeLessThan(2 ** 24);
  });

  test.each([1, 2])('two cards, %i rows a pass', async (microRows) => {
    const run: Run = { dtype: 'bf16', change: { microRows } };
    const cards = [backend, second] as const;
    const got = await trained(cards, run);
    const plain = () => trained(cards, run);
    const want = await recording(cards, undefined, plain);
    expect(got).toEqual({ ...want, recordings: [1, 1] });
  });

  test('memory is given back when asked for; a lost loss ends nothing', async () => {
    const model = await newModel(backend);
    const trainer = new Trainer(model, even, config);
    const inUse = () => backend.memory().bytesInUse;
    await trainer.step();
    const kept = inUse();
    trainer.freeRecordings();
    const least = inUse();
    expect(least).toBeLessThan(kept);
    await trainer.step();
    expect(inUse()).toBe(kept);
    const [weight] = model.parameters.values();
    const before = await backend.read(weight!.storage);
    backend.write(weight!.storage, new Float32Array(weight!.size).fill(NaN));
    await expect(trainer.step()).rejects.toThrow(LossError);
    backend.write(weight!.storage, before);
    expect((await trainer.step()).loss).toBeGreaterThan(0);
    trainer.free();
    model.free();
    expect(inUse()).toBe(0);
  });

  test('without room for a recording it goes on as before', async () => {
    const run = () => trained([backend]);
    const want = await recording([backend], undefined, run);
    const noRoom = () => {
      throw new OutOfMemoryError(1, 0, 'none');
    };
    const got = await recording([backend], noRoom, run);
    expect(got).toEqual({ ...want, recordings: [1] });
  });
});
