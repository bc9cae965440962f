import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import {
  type Backend,
  Engine,
  type GenerateOptions,
  type ModelConfig,
  type Session,
} from '@asa/core';
import { withKernels } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  onSystemAdapter,
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';
import {
  gla,
  gqa,
  linear,
  mla,
  nsa,
  randomTokens,
  rmsRatio,
  tinyConfig,
  tinyModel,
} from '../unit/engine/tiny-models';

const shape = { blocks: [4, 2, 8], sharing: 4, count: 4 } as const;
const rest = { context: 600 };
/** Each with the length of its longest prompt: 250 leads over a power of two. */
const configs: readonly (readonly [string, ModelConfig, number])[] = [
  ['asa', tinyConfig('GL', { G: gla(shape), L: mla(9) }, rest), 7],
  ['nsa', tinyConfig('N', { N: nsa(shape, 7, 'independent') }, rest), 7],
  ['windowed', tinyConfig('FW', { F: gqa(), W: gqa(5) }, rest), 250],
  ['linear', tinyConfig('GR', { G: gla(shape), R: linear }, rest), 250],
];

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`steps that are replayed ${reason ?? ''}`, () => {
  let gpu: WebGpuBackend;
  /** The same device, but every step is enqueued by the layers. */
  let plain: Backend;
  beforeAll(async () => {
    gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    plain = withKernels(gpu, {});
  }, 60_000);
  afterAll(() => gpu.destroy());

  const timeout = 300_000;

  // SwiftShader takes ten times as long for each: one of them there.
  const tried = onSystemAdapter ? configs : configs.slice(0, 1);
  const light = tried[2] ?? configs[0]!;

  test.each(tried)(
    '%s: have the bits of steps that the layers enqueue',
    { timeout },
    async (_, config, longest) => {
      const replayed = await story(gpu, config, longest);
      const enqueued = await story(plain, config, longest);
      expect(replayed.length).toBe(enqueued.length);
      for (const [i, logits] of replayed.entries()) {
        expect(logits, `logits ${i}`).toEqual(enqueued[i]);
      }
    },
  );

  test('warm steps allocate nothing and make no buffer', {
    timeout,
  }, async () => {
    const [, config] = configs[0]!;
    const { model, engine } = await open(gpu, config);
    const session = engine.session();
    const step = async (count: number) => {
      for (const token of randomTokens(count, 3)) {
        await session.extend([token]);
      }
    };
    await session.extend(randomTokens(20, 1));
    await step(20);
    const before = { ...gpu.memory(), buffers: gpu.buffersCreated };
    await step(100);
    expect({ ...gpu.memory(), buffers: gpu.buffersCreated }).toEqual(before);
    engine.free();
    model.free();
  });

  test('generates what the host chooses, and leaves sessions as it does', {
    timeout,
  }, async () => {
    const [, config] = configs[0]!;
    const chosen = await chapters(gpu, config);
    const wanted = await chapters(plain, config);
    expect(chosen.tokens).toEqual(wanted.tokens);
    // What is still to be run differs, so other tokens share a batch.
    for (const [i, logits] of chosen.logits.entries()) {
      expect(rmsRatio(logits, wanted.logits[i]!)).toBeLessThan(2e-5);
    }
    for (const [i, logprob] of chosen.logprobs.entries()) {
      expect(logprob).toBeCloseTo(wanted.logprobs[i] ?? 0, 4);
    }
  });

  test.each(tried.slice(3))(
    '%s: a layer with a state generates without running ahead',
    { timeout },
    async (_, config) => {
      const chosen = await chapters(gpu, config);
      const wanted = await chapters(plain, config);
      expect(chosen.tokens).toEqual(wanted.tokens);
      expect(chosen.logits).toEqual(wanted.logits);
    },
  );

  test('sessions of one cache generate side by side what each does alone', {
    timeout,
  }, async () => {
    const [, config] = light;
    const { model, engine } = await open(gpu, config);
    const sessions = engine.sessions(3);
    const generate = async (session: Session, seed: number) => {
      const tokens: number[] = [];
      const options = { prompt: [seed], maxTokens: 12, eos: [], seed };
      for await (const event of engine.generate(session, options)) {
        if ('token' in event) tokens.push(event.token);
      }
      return tokens;
    };
    const together = await Promise.all(sessions.map(generate));
    for (const [seed, session] of sessions.entries()) {
      session.reset();
      expect(await generate(session, seed)).toEqual(together[seed]);
    }
    engine.free();
    model.free();
  });

  test('generating again and again takes no more memory', {
    timeout,
  }, async () => {
    const [, config] = light;
    const { model, engine } = await open(gpu, config);
    const session = engine.session();
    const generate = async (times: number) => {
      for (let i = 0; i < times; i++) {
        session.reset();
        const options = { prompt: [1, 2, 3], maxTokens: 4, eos: [], seed: i };
        for await (const _ of engine.generate(session, options));
      }
      const { bytesInUse } = gpu.memory();
      return { bytesInUse, buffers: gpu.buffersCreated };
    };
    const before = await generate(10);
    expect(await generate(40)).toEqual(before);
    engine.free();
    model.free();
  });

  test('a recording ends with the memory that it uses', async () => {
    const inUse = gpu.memory().bytesInUse;
    const [, config] = configs[0]!;
    const { model, engine } = await open(gpu, config);
    for (let i = 0; i < 5; i++) {
      const session = engine.session();
      await session.extend(randomTokens(4, i));
      await session.extend([1]);
      session.free();
    }
    engine.free();
    model.free();
    expect(gpu.memory().bytesInUse).toBe(inUse);
  });
});

async function open(backend: Backend, config: ModelConfig) {
  const model = await tinyModel(backend, config);
  return { model, engine: Engine.from(model) };
}

/** Generations that end in every way, and the logits behind them. */
async function chapters(backend: Backend, config: ModelConfig) {
  const { model, engine } = await open(backend, config);
  const tokens: (number | string)[][] = [];
  const logprobs: number[] = [];
  const logits: Float32Array[] = [];
  const run = async (
    sessions: readonly Session[],
    options: readonly GenerateOptions[],
    most = Number.POSITIVE_INFINITY,
  ) => {
    const lists: (number | string)[][] = sessions.map(() => []);
    let count = 0;
    for await (const { index, event } of engine.generateBatch(
      sessions,
      options,
    )) {
      lists[index]?.push('token' in event ? event.token : event.reason);
      if ('token' in event) logprobs.push(event.logprob);
      count += 1;
      if (count === most) break;
    }
    tokens.push(...lists);
    logits.push(...(await engine.extend(sessions, [[5], [6], [7]])));
  };
  const sessions = engine.sessions(3, { capacity: 50 });
  const at = (seed: number, more: GenerateOptions): GenerateOptions => ({
    seed,
    eos: [],
    ...more,
  });
  // Of three lengths and ways to choose; they end one after the other.
  await run(sessions, [
    at(1, { prompt: [1, 2, 3], maxTokens: 15, temperature: 0 }),
    at(2, { prompt: [4], maxTokens: 9, topK: 5, temperature: 1.5 }),
    at(3, { prompt: [5, 6, 7, 8, 9, 1], maxTokens: 4, topP: 0.8, minP: 0.01 }),
  ]);
  // By end tokens, at the end of the room, and by a caller who leaves.
  await run(sessions, [
    at(4, { eos: [2, 3, 5] }),
    at(5, { eos: [2, 3, 5, 7], maxTokens: 20 }),
    at(6, { maxTokens: 12 }),
  ]);
  await run(
    sessions,
    sessions.map((_, i) => at(i, { maxTokens: 9 })),
    8,
  );
  const [first] = sessions;
  if (!first) throw new Error('no session');
  const events: string[] = [];
  for await (const event of engine.generate(first, at(9, {}))) {
    events.push('token' in event ? String(event.token) : event.reason);
  }
  tokens.push(events);
  engine.free();
  model.free();
  return { tokens, logprobs, logits };
}

/** All logits of sessions that live through what sessions can. */
async function story(
  backend: Backend,
  config: ModelConfig,
  longest: number,
): Promise<Float32Array[]> {
  const { model, engine } = await open(backend, config);
  const seen: Float32Array[] = [];
  let seed = 0;
  const extend = async (sessions: readonly Session[], count: number) => {
    const tokens = sessions.map(() => randomTokens(count, ++seed));
    seen.push(...(await engine.extend(sessions, tokens)));
  };
  const step = async (sessions: readonly Session[], count: number) => {
    for (let i = 0; i < count; i++) await extend(sessions, 1);
  };
  const [a, b, c] = engine.sessions(3) as [Session, Session, Session];
  // From nothing, over block boundaries, until the rings are full.
  await step([a], 12);
  await extend([b], 7);
  await step([a, b], 6);
  // Different lengths and another order of slots.
  await extend([c], longest);
  await step([c, a, b], 9);
  b.rollback(b.length - 1);
  a.rollback(9);
  await step([a, b], 3);
  const fork = c.fork();
  await step([fork], 3);
  await step([c], 3);
  c.reset();
  await step([c], 3);
  engine.free();
  model.free();
  return seen;
}
