import { blockCount, leaderCount, type Sequence, Sequences } from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  double,
  expectResults,
  layOut,
  type Part,
  parts,
  range,
  slice,
} from './attention-reference';
import { call, expectClose, real, type Value, type Values } from './helpers';

interface Ranking {
  readonly sequences: Sequences;
  readonly scale: number;
  readonly length: number;
  readonly stride: number;
  readonly groups: number;
  readonly blockSize: number;
  readonly sharing: number;
}

interface Lists {
  readonly count: number;
  readonly initial: number;
  readonly local: number;
}

type Float = 'f32' | 'f64';

/** LSE as compressed attention gives it. */
async function withLse(
  inputs: Values,
  ranking: Ranking,
  dtype: Float,
): Promise<Values> {
  const { lse } = await call(
    'compressedAttention',
    { ...inputs, v: inputs.k },
    ranking,
    dtype,
  );
  const shape = inputs.q!.shape.slice(0, 2);
  return { ...inputs, lse: { shape, data: double(lse) } };
}

async function importanceOf(
  inputs: Values,
  ranking: Ranking,
  dtype: Float = 'f64',
) {
  const all = await withLse(inputs, ranking, dtype);
  const { importance } = await call('blockImportance', all, ranking, dtype);
  return importance!;
}

async function listsOf(
  { previous, ...inputs }: Values,
  attributes: Ranking & Lists,
  dtype: Float = 'f64',
): Promise<number[][]> {
  const all = await withLse(inputs, attributes, dtype);
  const { indices } = await call(
    'selectBlocks',
    { ...all, previous },
    attributes,
    dtype,
  );
  return rowsOf(indices!, attributes.count);
}

function rowsOf(data: ArrayLike<number>, width: number): number[][] {
  const all = Array.from(data);
  return range(0, all.length / width).map((row) =>
    all.slice(row * width, (row + 1) * width),
  );
}

const one = (time: number, blocks: Partial<Ranking> = {}): Ranking => {
  const rest = { length: 1, stride: 1, sharing: 1, ...blocks };
  return {
    scale: 1,
    groups: 1,
    blockSize: 1,
    sequences: Sequences.uniform(1, time, time, rest),
    ...rest,
  };
};

/** One head; q is 1, so that the scores are the keys. */
const scores = (time: number, keys: readonly number[]): Values => ({
  q: { shape: [time, 1, 1], data: new Float64Array(time).fill(1) },
  k: { shape: [keys.length, 1, 1], data: Float64Array.from(keys) },
});

/** Shapes of the field, small: `d | l`, `d | l'`, `r | l'`. */
const blocking = fc
  .record({
    stride: fc.constantFrom(1, 2, 3),
    lengths: fc.constantFrom(1, 2, 3),
    sharing: fc.constantFrom(1, 2, 3, 4),
    blocks: fc.constantFrom(1, 2),
  })
  .map(({ stride, lengths, sharing, blocks }) => ({
    stride,
    sharing,
    length: stride * lengths,
    blockSize: stride * sharing * blocks,
  }));

const heads = fc.record({
  keyHeads: fc.constantFrom(1, 2),
  groups: fc.constantFrom(1, 2),
  times: fc.constantFrom(1, 2),
  width: fc.constantFrom(1, 3, 4),
  rotary: fc.constantFrom(0, 2),
  start: fc.integer({ min: 1, max: 2 ** 30 }),
});

type Heads = typeof heads extends fc.Arbitrary<infer T> ? T : never;
type Blocking = typeof blocking extends fc.Arbitrary<infer T> ? T : never;

function randomCase(parts: readonly Part[], blocks: Blocking, heads: Heads) {
  const { keyHeads, groups, times, width, rotary, start } = heads;
  const sequences = layOut(
    parts,
    (tokens) => blockCount(tokens, blocks),
    (first, count) => leaderCount(first, count, blocks.sharing),
  );
  const rows = sequences.queryRows + 1;
  const count = keyHeads * groups * times;
  const blockRows = sequences.blockRows(blocks) + 1;
  const inputs: Record<string, Value> = {
    q: real([rows, count, width], start),
    k: real([blockRows, keyHeads, width], start + 1),
    ...(rotary && {
      qRope: real([rows, count, rotary], start + 2),
      kRope: real([blockRows, 1, rotary], start + 3),
    }),
  };
  return { inputs, ranking: { sequences, scale: 0.7, groups, ...blocks } };
}

/** Leaders of a sequence that are queries, with the row of their lists. */
function leadersOf(
  { queryCount, keyCount, leaderStart }: Sequence,
  sharing: number,
) {
  const first = keyCount - queryCount;
  return range(first, keyCount)
    .filter((t) => t % sharing === 0)
    .map((t) => ({
      t,
      row: leaderStart + t / sharing - Math.floor(first / sharing),
    }));
}

/**
 * The importance by token overlap: a compressed block gives a selection block
 * its probability times the tokens that both hold, over `d`.
 */
function overlapImportance(inputs: Record<string, Value>, ranking: Ranking) {
  const { q, k, qRope, kRope } = inputs as Record<
    'q' | 'k' | 'qRope' | 'kRope',
    Value
  >;
  const { sequences, scale, length, stride, groups, blockSize, sharing } =
    ranking;
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  const P = new Float64Array(sequences.leaderRows(sharing) * groups * blocks);
  const count = q!.shape[1]!;
  const inner = (a: Value, aRow: number, b: Value, bRow: number) => {
    const width = a.shape[2]!;
    return range(0, width).reduce(
      (sum, c) => sum + a.data[aRow * width + c]! * b.data[bRow * width + c]!,
      0,
    );
  };
  for (const sequence of sequences.list) {
    const { queryStart, keyCount, queryCount, blockStart } = sequence;
    for (const { t, row } of leadersOf(sequence, sharing)) {
      const query = queryStart + t - (keyCount - queryCount);
      const visible = range(0, keyCount).filter(
        (c) => c * stride + length - 1 <= t,
      );
      for (let i = 0; i < count; i++) {
        const keyHeads = k.shape[1]!;
        const keyHead = Math.floor((i * keyHeads) / count);
        const powers = visible.map((c) => {
          const block = blockStart + c;
          const turned = qRope
            ? inner(qRope, query * count + i, kRope, block)
            : 0;
          const content = inner(
            q,
            query * count + i,
            k,
            block * keyHeads + keyHead,
          );
          return Math.exp((content + turned) * scale);
        });
        const total = powers.reduce((a, b) => a + b, 0);
        const group = Math.floor((i * groups) / count);
        for (const j of range(0, blocks)) {
          const at = (row * groups + group) * blocks + j;
          visible.forEach((c, n) => {
            P[at]! += (powers[n]! / total) * overlap(ranking, c, j);
          });
        }
      }
    }
  }
  return P;
}

/** Tokens that compressed block c and selection block j share, over `d`. */
function overlap(
  {
    length,
    stride,
    blockSize,
  }: Pick<Ranking, 'length' | 'stride' | 'blockSize'>,
  c: number,
  j: number,
): number {
  return (
    range(c * stride, c * stride + length).filter(
      (token) => Math.floor(token / blockSize) === j,
    ).length / stride
  );
}

describe('blockImportance', () => {
  it('is the probability of each block times the tokens shared, over d', () =>
    fc.assert(
      fc.asyncProperty(
        parts(false),
        blocking,
        heads,
        async (parts, blocks, heads) => {
          const { inputs, ranking } = randomCase(parts, blocks, heads);
          const got = await importanceOf(inputs, ranking);
          expectResults(got, overlapImportance(inputs, ranking));
        },
      ),
      { numRuns: 80 },
    ));

  it.each([
    [32, 16, 64],
    [16, 16, 16],
    [32, 16, 32],
    [16, 4, 16],
    [32, 16, 16],
  ])(
    'the overlap oracle: one block alone, l = %i, d = %i, l-prime = %i',
    async (length, stride, blockSize) => {
      const time = 3 * blockSize + length;
      const ranking = one(time, { length, stride, blockSize });
      const blocks = blockCount(time, ranking);
      const selectionBlocks = Math.ceil(time / blockSize);
      const weights: number[][] = [];
      for (const c of range(0, blocks)) {
        const keys = range(0, blocks).map((b) => (b === c ? 1000 : 0));
        const all = await importanceOf(scores(time, keys), ranking);
        const last = [...all.slice(-selectionBlocks)];
        expect(last).toEqual(
          range(0, selectionBlocks).map((j) => overlap(ranking, c, j)),
        );
        // Nothing is lost but what lies past the last selection block.
        expect(last.reduce((a, b) => a + b)).toBe(length / stride);
        weights.push(last);
      }
      // What block 1 is given by the compressed blocks, in their order.
      const given = weights.map((row) => row[1]).filter((w) => w !== 0);
      const pattern: Record<string, number[]> = {
        '32,16,64': [1, 2, 2, 2, 1],
        '16,16,16': [1],
        '32,16,32': [1, 2, 1],
        '16,4,16': [1, 2, 3, 4, 3, 2, 1],
        '32,16,16': [1, 1],
      };
      expect(given).toEqual(pattern[`${length},${stride},${blockSize}`]);
    },
  );

  it('is 0 for every block while no compressed block is visible', async () => {
    const ranking = one(5, { length: 4, stride: 2, blockSize: 2 });
    const rows = rowsOf(await importanceOf(scores(5, [0]), ranking), 3);
    expect(rows).toEqual([
      ...[
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
      ],
      ...[
        [1, 1, 0],
        [1, 1, 0],
      ],
    ]);
  });

  it('sums over the heads of a group and keeps groups apart', async () => {
    const inputs = {
      q: {
        shape: [2, 4, 1],
        data: Float64Array.from([0, 0, 0, 0, 1, 0, -1, -1]),
      },
      k: { shape: [2, 1, 1], data: Float64Array.from([1000, 0]) },
    };
    const got = await importanceOf(inputs, { ...one(2), groups: 2 });
    expect([...got.slice(4)]).toEqual([1.5, 0.5, 0, 2]);
  });

  it('rows of a leader before the first query, and of no leader, are 0', async () => {
    const sequences = new Sequences([
      {
        queryStart: 0,
        queryCount: 3,
        keyStart: 0,
        keyCount: 4,
        blockStart: 0,
        leaderStart: 1,
      },
    ]);
    const ranking = { ...one(4, { sharing: 2, blockSize: 2 }), sequences };
    const rows = rowsOf(
      await importanceOf(scores(3, [0, 0, 0, 0]), ranking),
      2,
    );
    expect(rows[0]).toEqual([0, 0]);
    expect(rows[1]).toEqual([0, 0]);
    expectClose(rows[2], [2 / 3, 1 / 3]);
    expect(rows.length).toBe(3);
  });

  it('is f32 beside 16-bit operands and f64 in double', async () => {
    const inputs = await withLse(scores(2, [0, 1]), one(2), 'f32');
    for (const [dtype, type] of [
      ['f32', Float32Array],
      ['bf16', Float32Array],
    ] as const) {
      const { importance } = await call(
        'blockImportance',
        inputs,
        one(2),
        dtype,
      );
      expect(importance).toBeInstanceOf(type);
      const p = Math.E / (1 + Math.E);
      expectClose(importance?.slice(2), [1 - p, p], 1e-6);
    }
  });
});

const lists = fc.record({
  initial: fc.constantFrom(0, 1, 2),
  local: fc.constantFrom(1, 2, 3),
  free: fc.constantFrom(0, 1, 2, 5),
});

/** The rule, word by word, from the importance that is ranked. */
function ruleOf(
  P: ArrayLike<number>,
  own: number,
  { count, initial, local }: Lists,
): number[] {
  const chosen = new Set<number>();
  for (const j of range(0, initial)) if (j <= own) chosen.add(j);
  for (const j of range(own - local + 1, own + 1)) if (j >= 0) chosen.add(j);
  while (chosen.size < Math.min(count, own + 1)) {
    let best = -1;
    for (const j of range(0, own + 1)) {
      if (!chosen.has(j) && (best < 0 || P[j]! > P[best]!)) best = j;
    }
    chosen.add(best);
  }
  const ascending = [...chosen].sort((a, b) => a - b);
  return range(0, count).map((i) => ascending[i] ?? -1);
}

/** Lists for the leaders that came before, each row another. */
function previousOf(ranking: Ranking, count: number): Value {
  const shape = [ranking.sequences.count, ranking.groups, count];
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, data: Int32Array.from(range(100, 100 + size)) };
}

describe('selectBlocks', () => {
  for (const dtype of ['f64', 'f32'] as const) {
    it(`takes the forced blocks, then the best by (importance, index), ${dtype}`, () =>
      fc.assert(
        fc.asyncProperty(
          ...[parts(false), blocking, heads, lists],
          async (parts, blocks, heads, { initial, local, free }) => {
            const { inputs, ranking } = randomCase(parts, blocks, heads);
            const rule = { initial, local, count: initial + local + free };
            const { sequences, sharing, blockSize, groups } = ranking;
            const previous = previousOf(ranking, rule.count);
            const got = await listsOf(
              { ...inputs, previous },
              { ...ranking, ...rule },
              dtype,
            );
            const all = await importanceOf(inputs, ranking, dtype);
            const P = rowsOf(all, Math.ceil(sequences.maxKeys / blockSize));
            const want = got.map(() => range(0, rule.count).map(() => -1));
            sequences.list.forEach((sequence, s) => {
              const { queryCount, keyCount, leaderStart } = sequence;
              const first = keyCount - queryCount;
              for (const g of range(0, groups)) {
                if (queryCount > 0 && first % sharing !== 0) {
                  want[leaderStart * groups + g] = range(0, rule.count).map(
                    (i) => 100 + (s * groups + g) * rule.count + i,
                  );
                }
                for (const { t, row } of leadersOf(sequence, sharing)) {
                  const at = row * groups + g;
                  const own = Math.floor(t / blockSize);
                  want[at] = ruleOf(P[at] ?? [], own, rule);
                }
              }
            });
            expect(got).toEqual(want);
          },
        ),
        { numRuns: 60 },
      ));
  }

  const rule = { count: 4, initial: 1, local: 2 };

  it('ranks by importance, descending', async () => {
    const inputs = scores(8, [0, 3, 1, 5, 2, 4, 0, 0]);
    expect((await listsOf(inputs, { ...one(8), ...rule }))[7]).toEqual([
      0, 3, 6, 7,
    ]);
    const more = { ...one(8), ...rule, count: 6 };
    expect((await listsOf(inputs, more))[7]).toEqual([0, 1, 3, 5, 6, 7]);
  });

  it('ties: equal keys give the lower index', async () => {
    const equal = scores(9, new Array(9).fill(0.3));
    for (const dtype of ['f32', 'f64'] as const) {
      const got = await listsOf(equal, { ...one(9), ...rule, count: 6 }, dtype);
      expect(got[8]).toEqual([0, 1, 2, 3, 7, 8]);
    }
    // Overlapping blocks: the inner selection blocks tie, the first is less.
    const ranking = one(16, { length: 4, stride: 2, blockSize: 4 });
    const attributes = { ...ranking, count: 2, initial: 0, local: 1 };
    const got = await listsOf(scores(16, new Array(7).fill(0.3)), attributes);
    expect(got[15]).toEqual([1, 3]);
  });

  it('ties are those of f32, unless all is f64', async () => {
    const inputs = scores(3, [0, 1e-9, 0]);
    const attributes = { ...one(3), count: 2, initial: 0, local: 1 };
    expect((await listsOf(inputs, attributes, 'f32'))[2]).toEqual([0, 2]);
    expect((await listsOf(inputs, attributes, 'f64'))[2]).toEqual([1, 2]);
  });

  it('trap: saturated probabilities do not displace forced blocks', async () => {
    // Block 2 has all the probability: exactly 1.
    const inputs = scores(8, [0, 0, 1000, 0, 0, 0, 0, 0]);
    const forced = { ...one(8), count: 3, initial: 1, local: 2 };
    const importance = await importanceOf(inputs, one(8));
    expect(importance[7 * 8 + 2]).toBe(1);
    expect((await listsOf(inputs, forced))[7]).toEqual([0, 6, 7]);
    const four = { ...forced, count: 4 };
    expect((await listsOf(inputs, four))[7]).toEqual([0, 2, 6, 7]);
  });

  it('trap: underflowed scores never let a future block in', async () => {
    // All probability is on block 0, and more of it on what comes later.
    const inputs = scores(8, [0, -4000, -3000, -5000, 1e4, 1e4, 1e4, 1e4]);
    const attributes = { ...one(8), count: 3, initial: 1, local: 1 };
    for (const dtype of ['f32', 'f64'] as const) {
      const got = await listsOf(inputs, attributes, dtype);
      expect(got.slice(0, 4)).toEqual([
        [0, -1, -1],
        [0, 1, -1],
        [0, 1, 2],
        [0, 1, 3],
      ]);
    }
  });

  it.each([
    [1, [[0, -1, -1, -1]]],
    [
      3,
      [
        [0, -1, -1, -1],
        [0, -1, -1, -1],
        [0, -1, -1, -1],
      ],
    ],
  ])('trap: T < l and T < l-prime, T = %i', async (time, want) => {
    const ranking = one(time, { length: 8, stride: 4, blockSize: 4 });
    const inputs = { q: real([time, 1, 2], 1), k: real([0, 1, 2], 2) };
    expect(await listsOf(inputs, { ...ranking, ...rule })).toEqual(want);
  });

  it('trap: n beyond the number of blocks pads with -1', async () => {
    const got = await listsOf(scores(3, [1, 2, 3]), {
      ...one(3),
      ...rule,
      count: 5,
    });
    expect(got).toEqual([
      [0, -1, -1, -1, -1],
      [0, 1, -1, -1, -1],
      [0, 1, 2, -1, -1],
    ]);
  });

  it.each([
    [{ count: 1, initial: 0, local: 1 }, [5]],
    [{ count: 2, initial: 0, local: 1 }, [1, 5]],
    [{ count: 3, initial: 0, local: 3 }, [3, 4, 5]],
    [{ count: 4, initial: 2, local: 1 }, [0, 1, 2, 5]],
    [{ count: 9, initial: 3, local: 6 }, [0, 1, 2, 3, 4, 5, -1, -1, -1]],
  ])('forces initial and local blocks, each once: %o', async (rule, want) => {
    const inputs = scores(6, [0, 5, 4, 3, 0, 0]);
    expect((await listsOf(inputs, { ...one(6), ...rule }))[5]).toEqual(want);
  });

  it('initial blocks of the future are not forced', async () => {
    const attributes = { ...one(3), count: 4, initial: 3, local: 1 };
    expect(await listsOf(scores(3, [0, 0, 0]), attributes)).toEqual([
      [0, -1, -1, -1],
      [0, 1, -1, -1],
      [0, 1, 2, -1],
    ]);
  });

  it('trap: forced blocks are by the block that holds t, at its borders', async () => {
    const ranking = one(9, { length: 4, stride: 4, blockSize: 4 });
    const attributes = { ...ranking, count: 2, initial: 0, local: 1 };
    const got = await listsOf(scores(9, [0, 1]), attributes);
    expect(got).toEqual([
      ...range(0, 4).map(() => [0, -1]),
      ...range(4, 8).map(() => [0, 1]),
      [1, 2],
    ]);
  });

  it.each(range(0, 13))(
    'trap: any split gives the lists of one prefill, P = %i',
    async (past) => {
      const time = 13;
      const blocks = { length: 2, stride: 2, blockSize: 4, sharing: 4 };
      const ranking = { ...one(time, blocks), groups: 2 };
      const rule = { count: 3, initial: 1, local: 1 };
      const q = real([time, 2, 3], 5);
      const k = real([6, 1, 3], 6);
      const whole = await listsOf({ q, k }, { ...ranking, ...rule });
      const slot = Math.floor(past / 4);
      const sequences = Sequences.uniform(1, time - past, time, blocks);
      const own = whole.slice(2 * slot, 2 * slot + 2);
      const previous =
        past % 4 === 0
          ? undefined
          : { shape: [1, 2, 3], data: Int32Array.from(own.flat()) };
      const rest = await listsOf(
        { q: slice(q, past, time), k, previous },
        { ...ranking, ...rule, sequences },
      );
      expect(rest).toEqual(whole.slice(2 * slot));
    },
  );

  it('previous lists serve only queries whose leader came before', async () => {
    const sequences = Sequences.packed(
      [
        { queries: 1, keys: 3 },
        { queries: 0, keys: 3 },
        { queries: 2, keys: 4 },
        { queries: 2, keys: 5 },
      ],
      { length: 1, stride: 1, sharing: 2 },
    );
    const ranking = { ...one(1, { sharing: 2, blockSize: 2 }), sequences };
    const rule = { count: 2, initial: 0, local: 1 };
    const got = await listsOf(
      {
        ...scores(5, new Array(15).fill(0)),
        previous: {
          shape: [4, 1, 2],
          data: Int32Array.from([10, 11, 20, 21, 30, 31, 40, 41]),
        },
      },
      { ...ranking, ...rule },
    );
    expect(got).toEqual([
      [0, 1],
      [0, 1],
      [40, 41],
      [0, 2],
    ]);
  });

  it('rows of no leader are -1', async () => {
    const { sequences } = one(2);
    const moved = new Sequences(
      sequences.list.map((sequence) => ({ ...sequence, leaderStart: 2 })),
    );
    const got = await listsOf(scores(2, [0, 0]), {
      ...one(2),
      count: 1,
      initial: 0,
      local: 1,
      sequences: moved,
    });
    expect(got).toEqual([[-1], [-1], [0], [1]]);
  });

  it('does not depend on the scale where one head ranks', async () => {
    const inputs = scores(9, [...real([9], 3).data]);
    const of = (scale: number) =>
      listsOf(inputs, { ...one(9), ...rule, scale });
    expect(await of(0.25)).toEqual(await of(1));
    expect(await of(4)).toEqual(await of(1));
  });

  it('causality: a changed token changes no list before it', async () => {
    const time = 9;
    const inputs = { q: real([time, 2, 3], 1), k: real([time, 1, 3], 2) };
    const attributes = { ...one(time), count: 3, initial: 0, local: 1 };
    const before = await listsOf(inputs, attributes, 'f32');
    for (const t of range(0, time)) {
      const data = inputs.k.data.slice();
      data.set([30, -50, 70], t * 3);
      const changed = { ...inputs, k: { ...inputs.k, data } };
      const after = await listsOf(changed, attributes, 'f32');
      expect(after.slice(0, t)).toEqual(before.slice(0, t));
    }
  });

  it('packed sequences are separate ones, and the same twice', async () => {
    const blocks = { length: 2, stride: 1, blockSize: 2, sharing: 2 };
    const lengths = [5, 8];
    const sequences = Sequences.packed(
      lengths.map((queries) => ({ queries })),
      blocks,
    );
    const inputs = { q: real([13, 2, 3], 1), k: real([11, 1, 3], 2) };
    const rule = { count: 3, initial: 0, local: 1 };
    const packed = { ...one(1, blocks), ...rule, sequences };
    const got = await listsOf(inputs, packed, 'f32');
    expect(await listsOf(inputs, packed, 'f32')).toEqual(got);
    const alone = await listsOf(
      { q: slice(inputs.q, 5, 13), k: slice(inputs.k, 4, 11) },
      { ...one(8, blocks), ...rule },
      'f32',
    );
    expect(got.slice(3)).toEqual(alone);
  });

  it('NaN in the keys still gives lists of distinct blocks', async () => {
    const inputs = scores(8, [0, Number.NaN, 1, 2, 3, 0, 0, 0]);
    const got = await listsOf(inputs, { ...one(8), ...rule }, 'f32');
    for (const [t, list] of got.entries()) {
      const blocks = list.filter((j) => j !== -1);
      expect(new Set(blocks).size).toBe(Math.min(4, t + 1));
      expect(Math.min(...blocks)).toBe(0);
      expect(Math.max(...blocks)).toBe(t);
    }
  });
});
