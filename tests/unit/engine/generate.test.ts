import {
  type EndEvent,
  Engine,
  type GenerateEvent,
  type GenerateOptions,
  MemoryFolder,
  type Session,
  SessionStateError,
  saveModel,
  type TokenEvent,
} from '@asa/core';
import { describe, expect, it } from 'vitest';
import { cpuTime } from '../cpu-time';
import { countingEngine, pieceTokenizer } from './scripted';
import {
  gla,
  mla,
  openPoisoned,
  randomTokens,
  rmsRatio,
  tinyConfig,
  tinyModel,
} from './tiny-models';

interface Generated {
  readonly tokens: TokenEvent[];
  readonly end: EndEvent;
  readonly text: string;
}

async function collect(
  events: AsyncIterable<GenerateEvent>,
): Promise<Generated> {
  const tokens: TokenEvent[] = [];
  const ends: EndEvent[] = [];
  for await (const event of events) {
    expect(ends).toEqual([]);
    if ('reason' in event) ends.push(event);
    else tokens.push(event);
  }
  expect(ends).toHaveLength(1);
  const text = [...tokens, ...ends].map((event) => event.text).join('');
  return { tokens, end: ends[0]!, text };
}

const pieces = ['>', 'Hel', 'lo', ' wor', [0xc3], [0xa9], 'ld', '!', 'x', 'y'];

async function scripted(options: { eos?: number[] } = {}) {
  const backend = await openPoisoned();
  const tokenizer = pieceTokenizer(pieces);
  const made = await countingEngine(backend, pieces.length, {
    tokenizer,
    ...options,
  });
  return { backend, ...made };
}

const greedy: GenerateOptions = { temperature: 0, prompt: [0] };

describe('generate', () => {
  it('streams tokens whose texts join, whole characters only', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    const options = { ...greedy, maxTokens: 7 };
    const { tokens, end, text } = await collect(
      engine.generate(session, options),
    );
    expect(tokens.map(({ token }) => token)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(tokens.map((event) => event.text)).toEqual([
      'Hel',
      'lo',
      ' wor',
      '',
      'é',
      'ld',
      '!',
    ]);
    expect(text).toBe('Hello woréld!');
    expect(end.reason).toBe('length');
    expect([...session.tokens]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(end.timings).toMatchObject({ promptTokens: 1, generatedTokens: 7 });
    expect(end.timings.timeToFirstTokenMs).toBeGreaterThan(0);
    expect(end.memory.bytesInUse).toBeGreaterThan(0);
  });

  it('gives what an incomplete character leaves with the end', async () => {
    const { engine } = await scripted();
    const options = { ...greedy, maxTokens: 4 };
    const { end } = await collect(engine.generate(engine.session(), options));
    expect(end.text).toBe('\uFFFD');
  });

  it('stops before a stop string that tokens share', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    const options = { ...greedy, stop: ['lo w', 'nothing'] };
    const { text, end } = await collect(engine.generate(session, options));
    expect(text).toBe('Hel');
    expect(end).toMatchObject({ reason: 'stop', stop: 'lo w' });
    expect([...session.tokens]).toEqual([0, 1, 2, 3]);
  });

  it('holds back what may begin a stop string and gives it in the end', async () => {
    const { engine } = await scripted();
    const options = { ...greedy, maxTokens: 2, stop: ['lo!'] };
    const generated = await collect(engine.generate(engine.session(), options));
    expect(generated.tokens.map(({ text }) => text)).toEqual(['He', 'l']);
    expect(generated.end).toMatchObject({ reason: 'length', text: 'lo' });
  });

  it('ends before an end token, of the model or of the call', async () => {
    const { engine } = await scripted({ eos: [3] });
    const session = engine.session();
    const { end, tokens } = await collect(engine.generate(session, greedy));
    expect(end.reason).toBe('eos');
    expect(tokens.map(({ token }) => token)).toEqual([1, 2]);
    expect([...session.tokens]).toEqual([0, 1, 2]);
    const other = { ...greedy, eos: [5] };
    const again = await collect(engine.generate(engine.session(), other));
    expect(again.tokens).toHaveLength(4);
  });

  it('ends when the session is full, and a full one at once', async () => {
    const { engine } = await scripted();
    const session = engine.session({ capacity: 5 });
    const { end, tokens } = await collect(engine.generate(session, greedy));
    expect(end.reason).toBe('capacity');
    expect(tokens).toHaveLength(4);
    const more = await collect(
      engine.generate(session, { ...greedy, prompt: [] }),
    );
    expect(more.end.reason).toBe('capacity');
    expect(more.end.timings.timeToFirstTokenMs).toBeUndefined();
  });

  it('takes in a prompt alone for 0 tokens, and goes on without a prompt', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    const none = await collect(
      engine.generate(session, { ...greedy, maxTokens: 0 }),
    );
    expect(none.tokens).toEqual([]);
    expect(none.end.reason).toBe('length');
    const on: GenerateOptions = { temperature: 0, maxTokens: 2 };
    await collect(engine.generate(session, on));
    await collect(engine.generate(session, on));
    expect([...session.tokens]).toEqual([0, 1, 2, 3, 4]);
  });

  it('encodes a prompt of text', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    await collect(
      engine.generate(session, { temperature: 0, prompt: 'x', maxTokens: 1 }),
    );
    expect([...session.tokens]).toEqual([8, 9]);
  });

  it('keeps what was taken when the caller leaves the loop', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    let seen = 0;
    for await (const event of engine.generate(session, greedy)) {
      if ('token' in event && ++seen === 3) break;
    }
    expect([...session.tokens]).toEqual([0, 1, 2, 3]);
    await session.extend([4]);
    expect(session.length).toBe(5);
  });

  it('gives the same tokens for the same seed', async () => {
    const { engine } = await scripted();
    const run = async (seed: number) => {
      const options = { prompt: [0], maxTokens: 30, seed, temperature: 3 };
      const { tokens } = await collect(
        engine.generate(engine.session(), options),
      );
      return tokens.map(({ token }) => token);
    };
    expect(await run(3)).toEqual(await run(3));
    expect(await run(3)).not.toEqual(await run(4));
  });

  it('never samples a token that the tokenizer lacks', async () => {
    const backend = await openPoisoned();
    const tokenizer = pieceTokenizer(pieces.slice(0, 4));
    const { engine } = await countingEngine(backend, 10, { tokenizer });
    const options = { ...greedy, maxTokens: 20, temperature: 9, seed: 1 };
    const { tokens } = await collect(
      engine.generate(engine.session(), options),
    );
    expect(Math.max(...tokens.map(({ token }) => token))).toBeLessThan(4);
  });

  it('works without a tokenizer, but not with text', async () => {
    const backend = await openPoisoned();
    const { engine } = await countingEngine(backend, 10);
    const options = { ...greedy, maxTokens: 3 };
    const { text, tokens } = await collect(
      engine.generate(engine.session(), options),
    );
    expect(text).toBe('');
    expect(tokens).toHaveLength(3);
    for (const bad of [{ prompt: 'a' }, { prompt: [0], stop: ['a'] }]) {
      const session = engine.session();
      await expect(collect(engine.generate(session, bad))).rejects.toThrow(
        /needs? a tokenizer/,
      );
      session.free();
    }
  });

  const refused: [GenerateOptions, string][] = [
    [{ maxTokens: -1 }, 'maxTokens'],
    [{ maxTokens: 1.5 }, 'maxTokens'],
    [{ maxTokens: Number.NaN }, 'maxTokens'],
    [{ seed: 2 ** 32 }, 'seed'],
    [{ seed: -1 }, 'seed'],
    [{ temperature: Number.NaN }, 'temperature'],
    [{ chunk: 0 }, 'chunk'],
    [{ stop: [''] }, 'stop'],
    [{ prompt: [] }, 'at least one token'],
    [{ prompt: [10] }, 'from 0 to 9'],
    [{ prompt: Array.from({ length: 65 }, () => 0) }, 'capacity'],
  ];
  it.each(refused)(
    'refuses %o, and the session stays as it was',
    async (options, rule) => {
      const { engine } = await scripted();
      const session = engine.session();
      const generated = collect(
        engine.generate(session, { prompt: [0], ...options }),
      );
      await expect(generated).rejects.toThrow(rule);
      expect(session.length).toBe(0);
      await session.extend([1, 2]);
      expect(session.length).toBe(2);
    },
  );
});

describe('an abort', () => {
  it('before the start takes nothing in', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    const signal = AbortSignal.abort();
    const { end, tokens } = await collect(
      engine.generate(session, { ...greedy, signal }),
    );
    expect(tokens).toEqual([]);
    expect(end.reason).toBe('abort');
    expect(session.length).toBe(0);
  });

  it('by a timer stops the backend of this thread, in the prompt or after', async () => {
    const config = tinyConfig(
      'GL',
      { G: gla({ blocks: [4, 4, 8], sharing: 4 }), L: mla(5) },
      { context: 100_000 },
    );
    const engine = Engine.from(await tinyModel(await openPoisoned(), config));
    /** Aborts 30 ms from the start, or from the first token on. */
    const run = async (promptTokens: number, from: 'start' | 'token') => {
      const session = engine.session({ capacity: 20_000 });
      const controller = new AbortController();
      const { signal } = controller;
      let timer: NodeJS.Timeout | undefined;
      const start = () => {
        timer ??= setTimeout(() => controller.abort(), 30);
      };
      const started = cpuTime();
      const prompt = randomTokens(promptTokens, 1);
      async function* events() {
        if (from === 'start') start();
        const options = { prompt, chunk: 8, signal };
        for await (const event of engine.generate(session, options)) {
          start();
          yield event;
        }
      }
      const { end } = await collect(events());
      clearTimeout(timer);
      expect(end.reason).toBe('abort');
      const { length } = session;
      session.free();
      expect(cpuTime() - started).toBeLessThan(2000);
      return { length, end };
    };
    const early = await run(15_000, 'start');
    expect(early.length).toBe(0);
    const late = await run(3, 'token');
    expect(late.length).toBe(3 + late.end.timings.generatedTokens);
    expect(late.length).toBeGreaterThan(3);
  });
});

describe('a batch', () => {
  const config = tinyConfig('GL', {
    G: gla({ blocks: [4, 4, 8], sharing: 4 }),
    L: mla(5),
  });
  const prompts = [1, 9, 22].map((length) => randomTokens(length, length));

  it('generates what each session generates alone', async () => {
    const engine = Engine.from(await tinyModel(await openPoisoned(), config));
    const all: GenerateOptions[] = prompts.map((prompt, i) => ({
      prompt,
      maxTokens: 6 + 4 * i,
      seed: i,
    }));
    const sessions = engine.sessions(3, { capacity: 60 });
    const got: number[][] = [[], [], []];
    const reasons: string[] = [];
    for await (const { index, event } of engine.generateBatch(sessions, all)) {
      if ('reason' in event) reasons[index] = event.reason;
      else got[index]!.push(event.token);
    }
    expect(reasons).toEqual(['length', 'length', 'length']);
    for (const [i, options] of all.entries()) {
      const alone = await collect(
        engine.generate(engine.session({ capacity: 60 }), options),
      );
      expect(got[i]).toEqual(alone.tokens.map(({ token }) => token));
      expect([...sessions[i]!.tokens]).toEqual([...prompts[i]!, ...got[i]!]);
    }
  });

  it('goes on for the others when one is aborted or left', async () => {
    const engine = Engine.from(await tinyModel(await openPoisoned(), config));
    const sessions = engine.sessions(3, { capacity: 60 });
    const controller = new AbortController();
    const options = prompts.map((prompt, i) => ({
      prompt,
      maxTokens: 8,
      ...(i === 1 && { signal: controller.signal }),
      ...(i === 2 && { signal: AbortSignal.abort() }),
    }));
    const counts = [0, 0, 0];
    const reasons: string[] = [];
    for await (const { index, event } of engine.generateBatch(
      sessions,
      options,
    )) {
      if ('reason' in event) reasons[index] = event.reason;
      else counts[index]! += 1;
      if (counts[1] === 3) controller.abort();
    }
    expect(reasons).toEqual(['length', 'abort', 'abort']);
    expect(counts).toEqual([8, 3, 0]);
    expect(sessions.map(({ length }) => length)).toEqual([9, 12, 0]);
  });
});

describe('overlapping calls', () => {
  const refusals: [string, (engine: Engine, session: Session) => unknown][] = [
    ['extend', (_, session) => session.extend([1])],
    [
      'extend of an engine',
      (engine, session) => engine.extend([session], [[1]]),
    ],
    ['rollback', async (_, session) => session.rollback(0)],
    ['fork', async (_, session) => session.fork()],
    ['free', async (_, session) => session.free()],
  ];
  it.each(refusals)('%s is refused while another runs', async (_, call) => {
    const { engine } = await scripted();
    const session = engine.session();
    const first = session.extend([1, 2, 3], { chunk: 1 });
    await expect(call(engine, session)).rejects.toThrow(SessionStateError);
    await first;
    expect([...session.tokens]).toEqual([1, 2, 3]);
    for await (const event of engine.generate(session, { maxTokens: 2 })) {
      if ('reason' in event) break;
      await expect(call(engine, session)).rejects.toThrow(SessionStateError);
    }
    expect(session.length).toBe(5);
  });

  it('a session twice in one call is refused, and stays usable', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    await expect(engine.extend([session, session], [[1], [2]])).rejects.toThrow(
      SessionStateError,
    );
    await session.extend([1]);
    expect(session.length).toBe(1);
  });

  it('a freed session is refused; freeing it again is harmless', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    session.free();
    session.free();
    await expect(session.extend([1])).rejects.toThrow(SessionStateError);
    expect(() => session.fork()).toThrow(SessionStateError);
  });

  it('different sessions of one cache may overlap', async () => {
    const { engine } = await scripted();
    const [a, b] = engine.sessions(2) as [Session, Session];
    await Promise.all([
      a.extend([1, 2, 3], { chunk: 1 }),
      b.extend([4, 5, 6, 7], { chunk: 2 }),
    ]);
    expect([...a.tokens]).toEqual([1, 2, 3]);
    expect([...b.tokens]).toEqual([4, 5, 6, 7]);
  });
});

describe('refused before anything changes', () => {
  it('more tokens than the capacity holds', async () => {
    const { engine } = await scripted();
    const [a, b] = engine.sessions(2, { capacity: 4 }) as [Session, Session];
    await a.extend([1, 2, 3]);
    await expect(a.extend([1, 2])).rejects.toThrow(/capacity is 4.*3 and 2/);
    await expect(engine.extend([b, a], [[1], [1, 2]])).rejects.toThrow(
      'capacity',
    );
    expect([a.length, b.length]).toEqual([3, 0]);
    await a.extend([4]);
  });

  it('tokens beyond the vocabulary, and no tokens', async () => {
    const { engine } = await scripted();
    const session = engine.session();
    for (const bad of [10, -1, 1.5, Number.NaN]) {
      await expect(session.extend([1, bad])).rejects.toThrow('from 0 to 9');
    }
    await expect(session.extend([])).rejects.toThrow('at least one token');
    expect(session.length).toBe(0);
  });

  it('a rollback to a length that is none, another engine, lists of unlike length', async () => {
    const { engine } = await scripted();
    const other = await scripted();
    const session = engine.session();
    await session.extend([1, 2]);
    for (const length of [-1, 3, 0.5, Number.NaN]) {
      expect(() => session.rollback(length)).toThrow('from 0 to 2');
    }
    await expect(other.engine.extend([session], [[1]])).rejects.toThrow(
      'another engine',
    );
    await expect(engine.extend([session], [])).rejects.toThrow('each session');
    expect(() => engine.session({ capacity: 0 })).toThrow('capacity');
  });
});

describe('16-bit models', () => {
  const config = tinyConfig('GL', {
    G: gla({ blocks: [4, 4, 8], sharing: 4 }),
    L: mla(5),
  });
  it.each([
    ['f16', 0.01],
    ['bf16', 0.08],
  ] as const)('give logits in f32: %s', async (dtype, most) => {
    // Six tokens: two blocks, of which nothing is left to choose.
    const tokens = randomTokens(6, 3);
    const run = async (type: 'f32' | 'f16' | 'bf16') => {
      const model = await tinyModel(await openPoisoned(), config, type);
      return Engine.from(model).session().extend(tokens, { chunk: 2 });
    };
    expect(rmsRatio(await run(dtype), await run('f32'))).toBeLessThan(most);
  });
});

describe('memory', () => {
  const config = tinyConfig('GL', {
    G: gla({ blocks: [4, 4, 8], sharing: 4 }),
    L: mla(5),
  });

  it('comes back after sessions, forks, aborts and errors', async () => {
    let left = Number.POSITIVE_INFINITY;
    const backend = await openPoisoned(() => {
      if (--left === 0) throw new Error('injected');
    });
    const engine = Engine.from(await tinyModel(backend, config));
    const warm = engine.session();
    await warm.extend([1]);
    warm.free();
    const before = backend.memory().bytesInUse;
    for (let round = 1; round <= 100; round++) {
      const [a, b] = engine.sessions(2, { capacity: 40 }) as [Session, Session];
      await a.extend(randomTokens(9, round), { chunk: 4 });
      const fork = a.fork();
      left = 3 * round;
      await fork.extend(randomTokens(20, round)).catch(() => undefined);
      left = Number.POSITIVE_INFINITY;
      for await (const event of engine.generate(b, { prompt: [1] })) {
        if ('token' in event) break;
      }
      const signal = AbortSignal.abort();
      await a.extend([1], { signal }).catch(() => undefined);
      expect(engine.memory.cacheBytes).toBe(a.bytes + b.bytes + fork.bytes);
      for (const session of [a, b, fork]) session.free();
    }
    expect(backend.memory().bytesInUse).toBe(before);
    expect(engine.memory.cacheBytes).toBe(0);
  });

  it('does not grow while a session decodes', async () => {
    const backend = await openPoisoned();
    const engine = Engine.from(await tinyModel(backend, config));
    const session = engine.session();
    await session.extend([1]);
    const before = backend.memory().bytesInUse;
    for (let i = 0; i < 50; i++) {
      await session.extend([i % 19]);
      expect(backend.memory().bytesInUse).toBe(before);
    }
  });

  it('is refused cleanly where the backend has none', async () => {
    const backend = await openPoisoned();
    const engine = Engine.from(await tinyModel(backend, config));
    const before = backend.memory().bytesInUse;
    expect(() => engine.session({ capacity: 1e15 })).toThrow('no memory');
    expect(backend.memory().bytesInUse).toBe(before);
  });

  it('a fork takes a slot that is free, else a cache of its own', async () => {
    const engine = Engine.from(await tinyModel(await openPoisoned(), config));
    const [a, b] = engine.sessions(2) as [Session, Session];
    const { cacheBytes } = engine.memory;
    b.free();
    const inside = a.fork();
    expect(engine.memory.cacheBytes).toBe(cacheBytes);
    const outside = a.fork();
    expect(engine.memory.cacheBytes).toBe(1.5 * cacheBytes);
    a.free();
    inside.free();
    expect(engine.memory.cacheBytes).toBe(cacheBytes / 2);
    outside.free();
    expect(engine.memory.cacheBytes).toBe(0);
  });
});

describe('open', () => {
  const save = async () => {
    const config = tinyConfig('GL', {
      G: gla({ blocks: [4, 4, 8], sharing: 4 }),
      L: mla(5),
    });
    const folder = new MemoryFolder();
    const model = await tinyModel(await openPoisoned(), config);
    await saveModel(folder, model);
    return { folder, model };
  };

  it('loads a folder that gives the same tokens, and frees it all', async () => {
    const { folder, model } = await save();
    const backend = await openPoisoned();
    const engine = await Engine.open(folder, backend);
    expect(engine.tokenizer).toBeUndefined();
    expect(engine.config).toEqual(model.config);
    const options = { ...greedy, maxTokens: 20 };
    const run = async (from: Engine) => {
      const { tokens } = await collect(from.generate(from.session(), options));
      return tokens.map(({ token }) => token);
    };
    expect(await run(engine)).toEqual(await run(Engine.from(model)));
    engine.free();
    expect(backend.memory().bytesInUse).toBe(0);
  });

  it('names the tokenizer file that is broken, and leaves nothing behind', async () => {
    const { folder } = await save();
    const backend = await openPoisoned();
    for (const text of ['{', '{}']) {
      await folder.write('tokenizer.json', (sink) =>
        sink.write(new TextEncoder().encode(text)),
      );
      await expect(Engine.open(folder, backend)).rejects.toThrow(
        /tokenizer\.json/,
      );
      expect(backend.memory().bytesInUse).toBe(0);
    }
  });
});
