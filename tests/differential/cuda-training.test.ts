/**
 * Passes that are enqueued again from a recording, on the emulated card, beside
 * the same without recordings.
 */
import {
  type Backend,
  backpropagate,
  Documents,
  LossError,
  OutOfMemoryError,
  type TrainConfigInput,
  Trainer,
} from '@asa/core';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { RecordedPasses } from '../../packages/core/src/train/recorded-pass';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import {
  documentsOf,
  newModel,
  tiny,
  trained as train,
} from '../unit/train/models';

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

/** Events and weights of a run, and how many recordings each backend made. */
async function trained(
  backends: readonly [Backend, ...Backend[]],
  { documents = even, change, dtype, model }: Run = {},
) {
  const records = backends.map(
    (each) => each.record && vi.spyOn(each, 'record'),
  );
  const settings = { ...config, ...change };
  const found = await train(backends, documents, settings, dtype, model);
  for (const each of backends) expect(each.memory().bytesInUse).toBe(0);
  const recordings = records.map((spy) => spy?.mock.calls.length ?? 0);
  for (const spy of records) spy?.mockRestore();
  return { ...found, recordings };
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
    'three, of which the last one is smaller': [{ change: { rows: 5 } }, 1],
    'five, of which the last one is smaller': [{ change: { rows: 9 } }, 4],
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

  test('memory is given back when asked for', async () => {
    const card = await openEmulated({}, 0);
    const model = await newModel(card);
    const trainer = new Trainer(model, even, config);
    for (let i = 0; i < 2; i++) await trainer.step();
    const tokens = new Int32Array(16).fill(1);
    const rows = Array(2).fill({ tokens, targets: tokens });
    const pass = () => {
      const { loss, gradients } = backpropagate(model, rows, 1);
      for (const x of [loss, ...gradients.values()]) x.free();
      return card.buffersCreated;
    };
    trainer.freeRecording();
    const { buffersCreated } = card;
    // A pass that is not recorded finds all that it needs.
    expect(pass()).toBe(buffersCreated);
    await trainer.step();
    expect(pass()).toBeGreaterThan(buffersCreated);
    trainer.free();
    model.free();
    expect(card.memory().bytesInUse).toBe(0);
    await card.destroy();
  });

  test('a lost loss and a token that is none end nothing', async () => {
    const model = await newModel(backend);
    const ids = Uint32Array.from({ length: 161 }, (_, i) => i % 13);
    const trainer = new Trainer(model, Documents.of([ids]), config);
    await trainer.step();
    const [weight] = model.parameters.values();
    const before = await backend.read(weight!.storage);
    backend.write(weight!.storage, new Float32Array(weight!.size).fill(NaN));
    await expect(trainer.step()).rejects.toThrow(LossError);
    backend.write(weight!.storage, before);
    const examples = (token: number, targets = 16) => [
      {
        tokens: new Int32Array(16).fill(token),
        targets: new Int32Array(targets),
      },
    ];
    const passes = new RecordedPasses(model);
    expect(passes.run(examples(1), 1)).toBeUndefined();
    expect(passes.run(examples(1), 1)).toBeDefined();
    expect(() => passes.run(examples(13), 1)).toThrow('from 0 to 12, got 13');
    expect(() => passes.run(examples(1, 15), 1)).toThrow('must have a target');
    const loss = async (token: number) => {
      const results = passes.run(examples(token), 1);
      return results && [...(await backend.read(results.loss.storage))];
    };
    const first = await loss(1);
    expect(await loss(2)).not.toEqual(first);
    expect(await loss(1)).toEqual(first);
    passes.free();
    expect((await trainer.step()).loss).toBeGreaterThan(0);
    trainer.free();
    model.free();
    expect(backend.memory().bytesInUse).toBe(0);
  });

  test('needs no more memory than passes that are not recorded', {
    timeout: 120_000,
  }, async () => {
    const under = async (limit: number, isRecorded: boolean) => {
      const card = await openEmulated({}, 0, 2 ** 25 + limit);
      const run = () => trained([card], { dtype: 'bf16' });
      try {
        if (isRecorded) return await run();
        return await recording([card], undefined, run);
      } catch (error) {
        expect(error).toBeInstanceOf(OutOfMemoryError);
        return undefined;
      } finally {
        await card.destroy();
      }
    };
    // The least that is enough without, and what is not.
    let [little, enough] = [400_000, 1_600_000];
    while (enough / little > 1.03) {
      const limit = Math.sqrt(little * enough);
      if (await under(limit, false)) enough = limit;
      else little = limit;
    }
    const want = await under(enough, false);
    for (const share of [1, 1.1, 1.2]) {
      const { recordings, ...got } = (await under(share * enough, true))!;
      expect({ ...got, recordings: [0] }).toEqual(want);
      expect(recordings).toEqual([1]);
    }
  });
});
