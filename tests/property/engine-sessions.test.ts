import { Engine, type Model, type ModelConfig, type Session } from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  gla,
  gqa,
  linear,
  mla,
  nsa,
  openPoisoned,
  rmsRatio,
  tinyConfig,
  tinyModel,
  vocabularySize,
} from '../unit/engine/tiny-models';

const capacity = 48;

const configs: [string, ModelConfig][] = [
  [
    'ASA 4/4/8, r 4, w 5',
    tinyConfig('GL', { G: gla({ blocks: [4, 4, 8], sharing: 4 }), L: mla(5) }),
  ],
  [
    'ASA 8/4/8, r 2 and r 4, w 9',
    tinyConfig(
      'GHL',
      {
        G: gla({ blocks: [8, 4, 8], sharing: 2, rope: 'block-start' }),
        H: gla({ blocks: [4, 4, 4], sharing: 4, kind: 'mlp', rope: 'none' }),
        L: mla(9),
      },
      { layers: 3 },
    ),
  ],
  [
    'NSA shared and independent, r 2',
    tinyConfig('SI', {
      S: nsa({ blocks: [4, 4, 8], sharing: 2 }, 7, 'shared'),
      I: nsa({ blocks: [8, 4, 8], sharing: 1 }, 6, 'independent'),
    }),
  ],
  [
    'ASA with linear attention, r 4',
    tinyConfig('GL', {
      G: gla({ blocks: [4, 4, 4], sharing: 4, kind: 'weighted' }),
      L: linear,
    }),
  ],
  ['GQA full and windowed', tinyConfig('GL', { G: gqa(), L: gqa(6) })],
];

type Step =
  | { kind: 'extend'; which: number; count: number; chunk: number }
  | { kind: 'extendAll'; counts: number[]; chunk: number }
  | { kind: 'rollback'; which: number; share: number }
  | { kind: 'last'; which: number }
  | { kind: 'fork'; which: number; over: number }
  | { kind: 'abort'; which: number; count: number; chunk: number }
  | { kind: 'fail'; which: number; count: number; chunk: number };

const slots = 3;
const which = fc.nat(slots - 1);
const count = fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 24 }));
const chunk = fc.constantFrom(1, 2, 3, 7, 64);
// Steps of one token are the ones that lists and full rings can undo.
const share = fc.oneof(
  fc.constant(-1),
  fc.double({ min: 0, max: 1, noNaN: true }),
);
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant('extend' as const), which, count, chunk }),
    fc.record({
      kind: fc.constant('extendAll' as const),
      counts: fc.array(count, { minLength: slots, maxLength: slots }),
      chunk,
    }),
    fc.record({ kind: fc.constant('rollback' as const), which, share }),
    fc.record({ kind: fc.constant('last' as const), which }),
    fc.record({ kind: fc.constant('fork' as const), which, over: which }),
    fc.record({ kind: fc.constant('abort' as const), which, count, chunk }),
    fc.record({ kind: fc.constant('fail' as const), which, count, chunk }),
  ),
  { minLength: 1, maxLength: 14 },
);

/** Logits behind the last token by one prefill, remembered by the tokens. */
class Oracle {
  private readonly known = new Map<string, Float32Array>();
  constructor(private readonly engine: Engine) {}

  async logits(tokens: Int32Array): Promise<Float32Array> {
    const key = tokens.join();
    let logits = this.known.get(key);
    if (!logits) {
      const session = this.engine.session({ capacity });
      logits = await session.extend(tokens, { chunk: capacity });
      session.free();
      this.known.set(key, logits);
    }
    return logits;
  }
}

/** Sessions of one engine beside the tokens that they must hold. */
class World {
  readonly sessions: Session[];
  readonly tokens: number[][] = Array.from({ length: slots }, () => []);
  private drawn = 0;

  constructor(
    readonly engine: Engine,
    private readonly oracle: Oracle,
    ring: boolean,
    private readonly failure: { after: number },
  ) {
    this.sessions = engine.sessions(slots, { capacity, ring });
  }

  async run(step: Step): Promise<void> {
    if (step.kind === 'extendAll') return this.extendAll(step);
    const { which } = step;
    const session = this.sessions[which]!;
    const tokens = this.tokens[which]!;
    if (step.kind === 'extend') {
      const news = this.draw(which, step.count);
      const logits = await session.extend(news, { chunk: step.chunk });
      tokens.push(...news);
      await this.compare(which, logits);
    } else if (step.kind === 'rollback') {
      const back = Math.floor(step.share * (tokens.length + 1));
      const length = step.share < 0 ? tokens.length - 1 : back;
      tokens.length = Math.max(0, Math.min(length, tokens.length));
      session.rollback(tokens.length);
    } else if (step.kind === 'last') {
      if (tokens.length === 0) return;
      await this.compare(which, await session.extend([]));
    } else if (step.kind === 'fork') {
      if (step.over === which) return;
      this.sessions[step.over]!.free();
      this.sessions[step.over] = session.fork();
      this.tokens[step.over] = [...tokens];
    } else if (step.kind === 'abort') {
      const controller = new AbortController();
      const news = this.draw(which, step.count);
      // A full session may have nothing left to run.
      if (news.length === 0) return;
      const extended = session.extend(news, {
        chunk: step.chunk,
        signal: controller.signal,
        onProgress: (done, total) => {
          if (2 * done >= total) controller.abort(new Error('enough'));
        },
      });
      await expect(extended).rejects.toThrow('enough');
    } else {
      this.failure.after = 20 + 7 * step.count;
      const news = this.draw(which, step.count);
      const extended = session.extend(news, { chunk: step.chunk });
      const failed = await extended.then(
        () => false,
        (error) => {
          expect(String(error)).toContain('injected');
          return true;
        },
      );
      this.failure.after = Number.POSITIVE_INFINITY;
      if (!failed) tokens.push(...news);
    }
  }

  check(): void {
    for (const [i, session] of this.sessions.entries()) {
      expect([...session.tokens]).toEqual(this.tokens[i]);
    }
  }

  free(): void {
    for (const session of this.sessions) session.free();
  }

  private async extendAll(step: Step & { kind: 'extendAll' }): Promise<void> {
    const news = step.counts.map((n, i) => this.draw(i, n));
    if (this.tokens.some((held, i) => held.length + news[i]!.length === 0))
      return;
    const logits = await this.engine.extend(this.sessions, news, {
      chunk: step.chunk,
    });
    for (let i = 0; i < slots; i++) {
      this.tokens[i]!.push(...news[i]!);
      await this.compare(i, logits[i]!);
    }
  }

  /** As many as fit; the same from run to run. */
  private draw(which: number, wanted: number): number[] {
    const room = capacity - this.tokens[which]!.length;
    return Array.from({ length: Math.min(wanted, room) }, () => {
      this.drawn += 1;
      return (this.drawn * 7 + which + (this.drawn >> 2)) % vocabularySize;
    });
  }

  private async compare(which: number, logits: Float32Array): Promise<void> {
    const want = await this.oracle.logits(this.sessions[which]!.tokens);
    expect(rmsRatio(logits, want)).toBeLessThan(1e-5);
  }
}

async function open(config: ModelConfig) {
  const failure = { after: Number.POSITIVE_INFINITY };
  const backend = await openPoisoned(() => {
    failure.after -= 1;
    if (failure.after === 0) throw new Error('injected');
  });
  const model: Model = await tinyModel(backend, config);
  const engine = Engine.from(model);
  return { failure, backend, engine };
}

describe('whatever happens to a session, it equals one prefill of its tokens', () => {
  it.each(configs)(
    '%s',
    async (_, config) => {
      const { failure, backend, engine } = await open(config);
      const oracle = new Oracle(engine);
      await oracle.logits(Int32Array.of(1));
      const before = backend.memory().bytesInUse;
      await fc.assert(
        fc.asyncProperty(steps, fc.boolean(), async (list, ring) => {
          const world = new World(engine, oracle, ring, failure);
          try {
            for (const step of list) {
              await world.run(step);
              world.check();
            }
            // What the steps left pending comes out right too.
            for (let i = 0; i < slots; i++) {
              await world.run({ kind: 'last', which: i });
            }
          } finally {
            failure.after = Number.POSITIVE_INFINITY;
            world.free();
          }
          expect(backend.memory().bytesInUse).toBe(before);
        }),
        { numRuns: 60 },
      );
    },
    60_000,
  );
});

describe('a rollback to every length, then the tokens once more', () => {
  it.each(configs)('%s', async (_, config) => {
    const { engine } = await open(config);
    const oracle = new Oracle(engine);
    const tokens = Array.from(
      { length: 29 },
      (_, i) => (i * 5 + (i >> 1)) % 19,
    );
    for (const ring of [true, false]) {
      for (let length = 0; length <= tokens.length; length++) {
        const session = engine.session({ capacity, ring });
        await session.extend(tokens);
        session.rollback(length);
        for (let end = length + 1; end <= Math.min(29, length + 5); end++) {
          const logits = await session.extend(tokens.slice(end - 1, end));
          const want = await oracle.logits(session.tokens);
          expect(rmsRatio(logits, want), `back to ${length}`).toBeLessThan(
            1e-5,
          );
        }
        session.free();
      }
    }
    engine.free();
  });
});

describe('a failure at any operator loses nothing', () => {
  it.each(configs)('%s', async (_, config) => {
    const { failure, backend, engine } = await open(config);
    const oracle = new Oracle(engine);
    const tokens = Array.from(
      { length: 30 },
      (_, i) => (i * 7 + (i >> 2)) % 19,
    );
    const held = tokens.slice(0, 21);
    const want = await oracle.logits(Int32Array.from(tokens.slice(0, 22)));
    const before = backend.memory().bytesInUse;
    let hasFailed = true;
    for (let operator = 1; hasFailed; operator++) {
      const session = engine.session({ capacity, ring: false });
      await session.extend(held);
      failure.after = operator;
      hasFailed = await session.extend(tokens.slice(21)).then(
        () => false,
        () => true,
      );
      failure.after = Number.POSITIVE_INFINITY;
      if (hasFailed) {
        expect([...session.tokens]).toEqual(held);
        const logits = await session.extend(tokens.slice(21, 22));
        const where = `after operator ${operator}`;
        expect(rmsRatio(logits, want), where).toBeLessThan(1e-5);
      }
      session.free();
      expect(backend.memory().bytesInUse).toBe(before);
    }
  });
});
