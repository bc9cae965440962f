import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  CheckpointError,
  type FloatType,
  type Folder,
  loadModel,
  MemoryFolder,
} from '@asa/core';
import { beforeEach, describe, expect, test } from 'vitest';
import {
  latestCheckpoint,
  type StepEvent,
  type TrainConfigInput,
  Trainer,
} from '../../../packages/core/src/train';
import { bitsOf, documentsOf, newModel, tiny } from './models';

const config: TrainConfigInput = {
  seed: 5,
  steps: 12,
  context: 8,
  rows: 4,
  microRows: 3,
  schedule: { kind: 'warmup-stable-decay', peak: 0.01, warmup: 3, decay: 4 },
};
const documents = documentsOf(19, 3, 8, 30, 5, 2);

let backend: Backend;
beforeEach(async () => {
  backend = await openCpu({ poison: true });
});

async function run(trainer: Trainer, steps: number) {
  const events: Omit<StepEvent, 'tokensPerSecond'>[] = [];
  for (let i = 0; i < steps; i++) {
    const { tokensPerSecond: _, ...event } = await trainer.step();
    events.push(event);
  }
  return events;
}

const everything = async ({ model, optimizer }: Trainer) => ({
  parameters: await bitsOf(model.parameters),
  masters: await bitsOf(optimizer.masters),
  m: await bitsOf(optimizer.m),
  v: await bitsOf(optimizer.v),
});

const start = async (dtype: 'f32' | 'f64' | 'bf16' = 'f32', change = {}) =>
  new Trainer(await newModel(backend, tiny(), dtype), documents, {
    ...config,
    ...change,
  });

describe('going on gives the bits of an unbroken run', () => {
  test.each([
    ['f32', 1],
    ['f32', 5],
    ['bf16', 4],
    ['f64', 3],
  ] as const)('%s, broken after %i steps', async (dtype, cut) => {
    const whole = await start(dtype);
    const wholeEvents = await run(whole, 2 * cut);
    const first = await start(dtype);
    const events = await run(first, cut);
    const folder = new MemoryFolder();
    await first.save(folder);
    const second = await Trainer.resume(
      folder,
      backend,
      documents,
      config,
      dtype,
    );
    expect(await everything(second)).toEqual(await everything(first));
    events.push(...(await run(second, cut)));
    expect(events).toEqual(wholeEvents);
    expect(await everything(second)).toEqual(await everything(whole));
  });

  test('the test would see one wrong bit: another seed gives other bits', async () => {
    const [a, b] = [await start(), await start('f32', { seed: 6 })];
    await run(a, 2);
    await run(b, 2);
    expect(await everything(a)).not.toEqual(await everything(b));
  });

  test('saving changes nothing', async () => {
    const [saved, plain] = [await start(), await start()];
    await run(saved, 2);
    const bytes = backend.memory().bytesInUse;
    await saved.save(new MemoryFolder());
    expect(backend.memory().bytesInUse).toBe(bytes);
    await run(saved, 1);
    await run(plain, 3);
    expect(await everything(saved)).toEqual(await everything(plain));
  });
});

test('a checkpoint is a model folder that any loader opens', async () => {
  const trainer = await start('bf16');
  await run(trainer, 2);
  const folder = new MemoryFolder();
  const alsoWrite = (version: Folder) =>
    version.write('tokenizer.json', (sink) => sink.write(Uint8Array.of(123)));
  await trainer.save(folder, { alsoWrite });
  const { version, state } = await latestCheckpoint(folder);
  expect(state).toMatchObject({ step: 2, config: { seed: 5, beta1: 0.9 } });
  expect(await version.has('tokenizer.json')).toBe(true);
  const { model } = await loadModel(version, backend, { dtype: 'f32' });
  expect(await bitsOf(model.parameters)).toEqual(
    await bitsOf(trainer.optimizer.masters),
  );
});

describe('which checkpoints stay', () => {
  const kept = async (folder: Folder) => {
    const steps: number[] = [];
    for (const name of await folder.list()) {
      const slot = await folder.subfolder(name);
      const alone = new MemoryFolder();
      const versions = (await slot.list()).filter((n) => /^step-/.test(n));
      expect(versions.length).toBe(1);
      steps.push(Number(/[0-9]+/.exec(versions[0] ?? '')?.[0]));
      expect(await alone.list()).toEqual([]);
    }
    return steps.sort((a, b) => a - b);
  };

  test.each([1, 2, 3])('the last %i', async (keep) => {
    const trainer = await start();
    const folder = new MemoryFolder();
    for (let step = 1; step <= 5; step++) {
      await run(trainer, 1);
      await trainer.save(folder, { keep });
      expect((await latestCheckpoint(folder)).state.step).toBe(step);
    }
    expect(await kept(folder)).toEqual([3, 4, 5].slice(3 - keep));
    // The same step again takes its own place.
    await trainer.save(folder, { keep });
    expect(await kept(folder)).toEqual([3, 4, 5].slice(3 - keep));
  });

  test.each([1, 2])(
    'a save that fails anywhere leaves the last one, keeping %i',
    async (keep) => {
      const trainer = await start();
      const folder = new MemoryFolder();
      await run(trainer, 1);
      await trainer.save(folder, { keep });
      await run(trainer, 1);
      for (let failing = 0; ; failing++) {
        const disk = { writes: failing };
        const full = trainer.save(fails(folder, disk), { keep });
        const error = await full.then(
          () => undefined,
          (e: Error) => e,
        );
        const { state } = await latestCheckpoint(folder);
        if (!error) {
          expect(state.step).toBe(2);
          expect(failing).toBeGreaterThan(4);
          return;
        }
        expect(error.message).toMatch(/the disk is full/);
        expect(state.step).toBe(1);
        const resumed = await Trainer.resume(
          folder,
          backend,
          documents,
          config,
        );
        expect(resumed.steps).toBe(1);
        resumed.free();
      }
    },
  );
});

/** The same folder, whose disk is full behind so many files. */
function fails(folder: Folder, disk: { writes: number }): Folder {
  return {
    path: folder.path,
    list: () => folder.list(),
    has: (name) => folder.has(name),
    open: (name) => folder.open(name),
    remove: (name) => folder.remove(name),
    subfolder: async (name) => fails(await folder.subfolder(name), disk),
    write: async (name, produce) => {
      if (disk.writes-- <= 0) {
        throw new CheckpointError(name, undefined, 'the disk is full');
      }
      return folder.write(name, produce);
    },
  };
}

describe('refuses to go on', () => {
  let folder: MemoryFolder;
  beforeEach(async () => {
    folder = new MemoryFolder('runs/a');
    const trainer = await start();
    await run(trainer, 1);
    await trainer.save(folder);
  });

  const resume = async (
    change: Partial<TrainConfigInput> = {},
    data = documents,
    dtype: FloatType = 'f32',
  ) => {
    const before = backend.memory().bytesInUse;
    try {
      return await Trainer.resume(
        folder,
        backend,
        data,
        { ...config, ...change },
        dtype,
      );
    } catch (error) {
      expect(backend.memory().bytesInUse).toBe(before);
      throw error;
    }
  };
  const latest = async () =>
    (await latestCheckpoint(folder)).version as MemoryFolder;
  const text = (value: string) => new TextEncoder().encode(value);

  test('without a checkpoint', async () => {
    folder = new MemoryFolder('runs/none');
    await expect(resume()).rejects.toThrow('runs/none: holds no checkpoint');
    await folder.subfolder('slot-0');
    await expect(resume()).rejects.toThrow('runs/none: holds no checkpoint');
  });

  test.each([
    [{ seed: 6 }, /seed: must be as in the checkpoint, 5, .* got 6/],
    [{ rows: 2 }, /rows: must be/],
    [{ microRows: undefined }, /microRows: must be as in the checkpoint, 3/],
    [{ schedule: { kind: 'constant', peak: 0.01 } }, /schedule: must be/],
    [{ spike: 3 }, /spike: must be as in the checkpoint, undefined/],
  ] as const)('with %j', async (change, message) => {
    await expect(resume(change)).rejects.toThrow(message);
  });

  test('with other documents', async () => {
    const other = documentsOf(19, 3, 8, 30, 5, 3);
    await expect(resume({}, other)).rejects.toThrow(/data: must be the/);
  });

  test('but does with another number of steps', async () => {
    expect((await resume({ steps: 20 })).config.steps).toBe(20);
  });

  test('with weights of another type', async () => {
    await expect(resume({}, documents, 'f64')).rejects.toThrow(
      /dtype: must be as in the checkpoint, f32, .* got f64/,
    );
  });

  test('with damaged moments, or none', async () => {
    (await latest()).set('optimizer.safetensors', text('nothing'));
    await expect(resume()).rejects.toThrow(CheckpointError);
    await (await latest()).remove('optimizer.safetensors');
    await expect(resume()).rejects.toThrow(/optimizer.safetensors: no such/);
  });

  test.each([
    ['{', /not JSON/],
    ['{}', /step/],
    ['{"step":-1}', /step/],
  ])('with the state %s', async (state, message) => {
    (await latest()).set('trainer.json', text(state));
    await expect(resume()).rejects.toThrow(message);
    await expect(resume()).rejects.toThrow(CheckpointError);
  });
});
