import {
  Engine,
  type FloatType,
  type ModelConfig,
  type Session,
} from '@asa/core';
import { describe, expect, it } from 'vitest';
import {
  gla,
  gqa,
  ListRecorder,
  linear,
  mla,
  nsa,
  randomTokens,
  rmsRatio,
  tinyConfig,
  tinyModel,
} from '../unit/engine/tiny-models';

const chunks = [1, 2, 3, 7, 64];
const allowed: Partial<Record<FloatType, number>> = { f32: 1e-5, f64: 1e-6 };

/** Logits of every token of a session, compared with those of one prefill. */
class Reference {
  readonly logits: Float32Array[] = [];
  lists = new Map<string, string>();
  worst = 0;

  constructor(
    readonly tokens: readonly number[],
    private readonly recorder: ListRecorder,
  ) {}

  async prefill(session: Session): Promise<void> {
    await session.extend(this.tokens, {
      chunk: this.tokens.length,
      onLogits: ({ logits, rows }) => {
        const width = logits.length / rows;
        for (let i = 0; i < rows; i++) {
          this.logits.push(logits.slice(i * width, (i + 1) * width));
        }
      },
    });
    this.lists = await this.recorder.take();
  }

  /** Extends by the tokens up to `end` and compares the logits of each. */
  async extend(session: Session, end: number, chunk: number): Promise<void> {
    let seen = session.length;
    await session.extend(this.tokens.slice(session.length, end), {
      chunk,
      onLogits: ({ logits, rows, position }) => {
        expect(position).toBe(seen);
        seen += rows;
        const width = logits.length / rows;
        for (let i = 0; i < rows; i++) {
          const got = logits.subarray(i * width, (i + 1) * width);
          const ratio = rmsRatio(got, this.logits[position + i]!);
          this.worst =
            ratio > this.worst || Number.isNaN(ratio) ? ratio : this.worst;
        }
      },
    });
    expect(seen).toBe(end);
  }

  async check(where: string, dtype: FloatType): Promise<void> {
    expect(this.worst, `RMS ratio ${where}`).toBeLessThan(allowed[dtype]!);
    const lists = await this.recorder.take();
    expect(this.recorder.doubleWrites, `rows written twice ${where}`).toBe(0);
    for (const [leader, list] of lists) {
      expect(list, `block list ${leader} ${where}`).toBe(
        this.lists.get(leader),
      );
    }
  }
}

/** Every split of `length` tokens into prefill, decode and further chunks. */
async function checkSplits(
  config: ModelConfig,
  length: number,
  ring: boolean,
  dtype: FloatType,
): Promise<void> {
  const recorder = new ListRecorder();
  const backend = await recorder.open(config);
  const engine = Engine.from(await tinyModel(backend, config, dtype));
  const options = { capacity: length, ring };
  const reference = new Reference(randomTokens(length, 5), recorder);
  const whole = engine.session(options);
  await reference.prefill(whole);
  whole.free();
  const decoded = engine.session(options);
  for (let split = 1; split <= length; split++) {
    const chunk = chunks[split % chunks.length]!;
    const where = `at ${split} of ${length}, chunk ${chunk}, ring ${ring}`;
    // `split` tokens one by one, then the rest at once, in a copy.
    await reference.extend(decoded, split, 1);
    const fork = decoded.fork();
    await reference.extend(fork, length, length);
    fork.free();
    // A prefill of `split` tokens, two by decoding, then chunks.
    const session = engine.session(options);
    await reference.extend(session, split, split);
    const last = Math.min(length, split + 2);
    await reference.extend(session, last, 1);
    // Short chunks near the end only: they cost a call each.
    const middle = Math.max(last, chunk < 7 ? length - 12 : last);
    await reference.extend(session, middle, length);
    await reference.extend(session, length, chunk);
    session.free();
    await reference.check(where, dtype);
  }
  decoded.free();
  await backend.destroy();
}

const asa = (
  blocks: [number, number, number],
  sharing: number,
  window: number,
  kind: 'mean' | 'weighted' | 'linear' | 'mlp' = 'mean',
  rope: 'rotated-mean' | 'block-start' | 'none' = 'rotated-mean',
  count = 4,
) =>
  tinyConfig('GL', {
    G: gla({ blocks, sharing, kind, rope, count }),
    L: mla(window),
  });

const independent = (window: number) =>
  tinyConfig('G', {
    G: nsa(
      { blocks: [8, 4, 8], sharing: 2, kind: 'linear', rope: 'block-start' },
      window,
      'independent',
    ),
  });

const cases: [string, ModelConfig][] = [
  ['ASA 4/4/4, r 1, w 5, mean', asa([4, 4, 4], 1, 5)],
  [
    'ASA 8/4/8, r 2, w 8, weighted, block-start',
    asa([8, 4, 8], 2, 8, 'weighted', 'block-start'),
  ],
  [
    'ASA 4/4/8, r 4, w 17, linear, none, n 3',
    asa([4, 4, 8], 4, 17, 'linear', 'none', 3),
  ],
  ['ASA 8/4/8, r 4, w 12, mlp', asa([8, 4, 8], 4, 12, 'mlp')],
  ['ASA 4/4/4, r 2, w 6, mlp, none', asa([4, 4, 4], 2, 6, 'mlp', 'none')],
  [
    'ASA 4/4/4, r 4, w 7, linear, block-start',
    asa([4, 4, 4], 4, 7, 'linear', 'block-start', 5),
  ],
  ['ASA 8/4/8, r 1, w 16, linear', asa([8, 4, 8], 1, 16, 'linear')],
  ['ASA 4/4/8, r 1, w 9, weighted', asa([4, 4, 8], 1, 9, 'weighted')],
  [
    'ASA 4/4/8, r 2, w 13, mlp, block-start',
    asa([4, 4, 8], 2, 13, 'mlp', 'block-start'),
  ],
  [
    'NSA shared, r 1, w 6',
    tinyConfig('G', {
      G: nsa({ blocks: [4, 4, 4], sharing: 1 }, 6, 'shared'),
    }),
  ],
  [
    'NSA shared, r 4, w 11, none',
    tinyConfig('G', {
      G: nsa(
        { blocks: [8, 4, 8], sharing: 4, kind: 'weighted', rope: 'none' },
        11,
        'shared',
      ),
    }),
  ],
  ['NSA independent, w 5', independent(5)],
  ['NSA independent, w 17', independent(17)],
  [
    'NSA shared beside independent, of one blocking',
    tinyConfig('SI', {
      S: nsa({ blocks: [4, 4, 8], sharing: 2 }, 8, 'shared'),
      I: nsa({ blocks: [4, 4, 8], sharing: 2 }, 8, 'independent'),
    }),
  ],
  ['GQA full and windowed', tinyConfig('GL', { G: gqa(), L: gqa(9) })],
  ['MLA full and windowed', tinyConfig('GL', { G: mla(), L: mla(5) })],
  [
    'ASA with linear attention',
    tinyConfig('GL', {
      G: gla({ blocks: [4, 4, 8], sharing: 4 }),
      L: linear,
    }),
  ],
];

describe('prefill and decode equal one prefill, at every split', () => {
  it.each(cases)(
    '%s, up to 130 tokens',
    async (_, config) => {
      await checkSplits(config, 130, true, 'f32');
    },
    60_000,
  );

  it.each(cases)(
    '%s, up to 42 tokens',
    async (_, config) => {
      await checkSplits(config, 42, true, 'f32');
      await checkSplits(config, 37, false, 'f32');
      await checkSplits(config, 26, true, 'f64');
    },
    60_000,
  );
});
