import { leaderCount, Sequences } from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bothWays,
  double,
  expectResults,
  identity,
  layOut,
  operands,
  type Part,
  parts,
  range,
  seen,
  slice,
  textbook,
  widths,
  zeros,
} from './attention-reference';
import {
  call,
  checkGradient,
  expectClose,
  integers,
  real,
  type Value,
} from './helpers';

/** `r` divides `l'`; `n` blocks in a list. */
const selection = fc
  .record({
    sharing: fc.constantFrom(1, 2, 3, 4),
    times: fc.constantFrom(1, 2, 3),
    count: fc.constantFrom(1, 2, 3, 6),
    listsPerGroup: fc.constantFrom(1, 2, 3),
  })
  .map(({ times, sharing, ...rest }) => ({
    ...rest,
    sharing,
    blockSize: times * sharing,
  }));

type Selection = typeof selection extends fc.Arbitrary<infer T> ? T : never;

/**
 * Lists as a user may give them: in any order, -1 anywhere, blocks of the
 * future, no block twice.
 */
function randomLists(shape: readonly number[], start: number): Value {
  const [leaders = 0, groups = 0, count = 0] = shape;
  const next = integers(start);
  const lists = range(0, leaders * groups).flatMap(() => {
    const blocks = range(0, count + 4);
    for (let i = blocks.length - 1; i > 0; i--) {
      const j = next() % (i + 1);
      [blocks[i], blocks[j]] = [blocks[j]!, blocks[i]!];
    }
    return blocks.slice(0, count).map((b) => (next() % 5 === 0 ? -1 : b));
  });
  return { shape, data: Int32Array.from(lists) };
}

/** The call of a random case, and the textbook's rule for it. */
function laidOut(
  parts: readonly Part[],
  { sharing, blockSize, count, listsPerGroup }: Selection,
  groups: number,
  start: number,
) {
  const sequences = layOut(parts, undefined, (first, queries) =>
    leaderCount(first, queries, sharing),
  );
  const leaders = sequences.leaderRows(sharing) + 1;
  const listGroups = groups * listsPerGroup;
  const indices = randomLists([leaders, listGroups, count], start + 7);
  const attributes = { sequences, scale: 0.6, blockSize, sharing };
  return { sequences, indices, attributes };
}

const textbookOf = (
  indices: Value,
  heads: number,
  { sharing, blockSize }: { sharing: number; blockSize: number },
) => ({
  scale: 0.6,
  keysOf: ({ keyStart = 0, keyCount = 0 }) => ({
    start: keyStart,
    count: keyCount,
  }),
  sees: (
    { keyCount, queryCount, leaderStart }: Sequences['list'][number],
    t: number,
    j: number,
    head: number,
  ) => {
    const [, groups = 1, count = 0] = indices.shape;
    const leader = sharing * Math.floor(t / sharing);
    const first = sharing * Math.floor((keyCount - queryCount) / sharing);
    const row = leaderStart + (leader - first) / sharing;
    const group = Math.floor(head / (heads / groups));
    const from = (row * groups + group) * count;
    const list = indices.data.slice(from, from + count);
    return j <= t && list.includes(Math.floor(j / blockSize));
  },
});

/** Lists of `[n]` a leader, one group. */
const listsOf = (...lists: number[][]): Value => ({
  shape: [lists.length, 1, lists[0]!.length],
  data: Int32Array.from(lists.flat()),
});

const one = (time: number, blockSize: number, sharing = 1) => ({
  sequences: Sequences.uniform(1, time, time, {
    length: 1,
    stride: 1,
    sharing,
  }),
  scale: 0.5,
  blockSize,
  sharing,
});

/** Who sees whom, when every score is 0. */
async function visible(
  time: number,
  indices: Value,
  attributes: ReturnType<typeof one>,
  queries = time,
): Promise<number[][]> {
  const { o } = await call(
    'selectedAttention',
    {
      q: zeros(queries, 1, 1),
      k: zeros(time, 1, 1),
      v: identity(time),
      indices,
    },
    attributes,
  );
  return seen(o, time);
}

describe('selectedAttention', () => {
  it('is softmax attention over listed tokens, with all its gradients', () =>
    fc.assert(
      fc.asyncProperty(
        parts(true),
        widths,
        selection,
        async (parts, widths, selection) => {
          const { groups, start } = widths;
          // Lists per key group, or per head: heads divide by both.
          const own = {
            ...widths,
            perGroup: widths.perGroup * selection.listsPerGroup,
          };
          const { sequences, indices, attributes } = laidOut(
            parts,
            selection,
            groups,
            start,
          );
          const rows = sequences.queryRows + 1;
          const inputs = operands(own, rows, rows);
          const heads = inputs.q!.shape[1]!;
          const dO = real([rows, heads, widths.valueWidth], start + 5);
          const want = textbook(
            { ...inputs, dO },
            sequences,
            textbookOf(indices, heads, attributes),
          );
          const got = await bothWays(
            'selectedAttention',
            { ...inputs, dO, indices },
            attributes,
          );
          expect(Object.keys(got).sort()).toEqual(Object.keys(want).sort());
          for (const [name, values] of Object.entries(want)) {
            expectResults(got[name], values);
          }
        },
      ),
      { numRuns: 80 },
    ));

  it('takes queries that are the last of their keys, leaders before them', () =>
    fc.assert(
      fc.asyncProperty(
        parts(false),
        widths,
        selection,
        async (parts, widths, selection) => {
          const { sequences, indices, attributes } = laidOut(
            parts,
            { ...selection, listsPerGroup: 1 },
            1,
            widths.start,
          );
          const inputs = operands(
            widths,
            sequences.queryRows + 1,
            sequences.keyRows + 1,
          );
          const heads = inputs.q!.shape[1]!;
          const want = textbook(
            inputs,
            sequences,
            textbookOf(indices, heads, attributes),
          );
          const got = await call(
            'selectedAttention',
            { ...inputs, indices },
            attributes,
          );
          expectResults(got.o, want.o!);
          expectResults(got.lse, want.lse!);
        },
      ),
      { numRuns: 60 },
    ));

  it('has the gradients of central differences', () =>
    fc.assert(
      fc.asyncProperty(
        parts(true),
        widths,
        selection,
        async (parts, widths, selection) => {
          const { sequences, indices, attributes } = laidOut(
            parts,
            { ...selection, listsPerGroup: 1 },
            widths.groups,
            widths.start,
          );
          const rows = sequences.queryRows + 1;
          const inputs = operands(widths, rows, rows);
          await checkGradient(
            'selectedAttention',
            { ...inputs, indices },
            attributes,
            'o',
            Object.keys(inputs),
          );
        },
      ),
      { numRuns: 6 },
    ));

  it('sees the tokens up to itself of the blocks in its list', async () => {
    const lists = listsOf(
      [0, -1],
      [0, -1],
      [0, 1],
      [1, 0],
      [1, -1],
      [-1, 0],
      [-1, 3],
    );
    expect(await visible(7, lists, one(7, 2))).toEqual([
      [0],
      [0, 1],
      [0, 1, 2],
      [0, 1, 2, 3],
      [2, 3],
      [0, 1],
      [6],
    ]);
  });

  it('trap: tokens of the future are invisible, in part or whole', async () => {
    const lists = listsOf(...range(0, 6).map(() => [2, 1]));
    expect(await visible(6, lists, one(6, 2))).toEqual([
      [],
      [],
      [2],
      [2, 3],
      [2, 3, 4],
      [2, 3, 4, 5],
    ]);
  });

  it('trap: a list without a visible token gives 0, LSE -inf, gradients 0', async () => {
    const inputs = {
      q: real([4, 1, 2], 1),
      k: real([4, 1, 2], 2),
      v: real([4, 1, 2], 3),
      dO: real([4, 1, 2], 4),
      indices: listsOf([-1, -1], [1, 2147483647], [-1, 1], [5, -1]),
    };
    const got = await bothWays('selectedAttention', inputs, one(4, 2), 'f32');
    expect([...got.lse!].map(Number.isFinite)).toEqual([
      ...[false, false, true, false],
    ]);
    expect(got.lse![0]).toBe(-Infinity);
    for (const name of ['o', 'dQ']) {
      const rows = [0, 1, 3].flatMap((row) => [
        ...got[name]!.slice(2 * row, 2 * row + 2),
      ]);
      expect(rows, name).toEqual([0, 0, 0, 0, 0, 0]);
    }
    const values = [0, 0, 0, 0, ...inputs.dO.data.slice(4, 6), 0, 0];
    expectClose(got.dV, values, 1e-6);
    for (const values of Object.values(got)) {
      expect([...values].some(Number.isNaN)).toBe(false);
    }
  });

  it('queries inherit the list of their leader, masked by themselves', async () => {
    const lists = listsOf([0, 1], [0, 1], [1, -1]);
    expect(await visible(12, lists, one(12, 4, 4))).toEqual([
      ...range(0, 8).map((t) => range(0, t + 1)),
      ...range(8, 12).map(() => [4, 5, 6, 7]),
    ]);
  });

  it.each([0, 1, 2, 3, 4, 5, 6, 7])(
    'trap: inheritance across a chunk boundary, P = %i',
    async (past) => {
      const time = 10;
      const blocking = { length: 1, stride: 1, sharing: 3 };
      const lists = [[0], [0], [2], [3]];
      const whole = await visible(time, listsOf(...lists), one(time, 3, 3));
      const rest = await visible(
        time,
        listsOf(...lists.slice(Math.floor(past / 3))),
        {
          ...one(time, 3, 3),
          sequences: Sequences.uniform(1, time - past, time, blocking),
        },
        time - past,
      );
      expect(whole[4]).toEqual([0, 1, 2]);
      expect(whole[7]).toEqual([6, 7]);
      expect(rest).toEqual(whole.slice(past));
    },
  );

  it.each([1, 3, 4, 5, 8, 9])(
    'all blocks listed is full attention, to the bit, T = %i',
    async (time) => {
      const blocks = Math.ceil(time / 4);
      const inputs = {
        q: real([time, 2, 3], 1),
        k: real([time, 1, 3], 2),
        v: real([time, 1, 4], 3),
        dO: real([time, 2, 4], 4),
      };
      const indices = listsOf(...range(0, time).map(() => range(0, blocks)));
      const full = await bothWays('attention', inputs, one(time, 4), 'f32');
      const got = await bothWays(
        'selectedAttention',
        { ...inputs, indices },
        one(time, 4),
        'f32',
      );
      expect(got).toEqual(full);
    },
  );

  it('takes lists longer than a row starts with', async () => {
    const time = 300;
    const lists = listsOf(
      ...range(0, time).map((t) =>
        t === time - 1 ? [3, 0, 1, 2, 4] : [-1, -1, -1, -1, -1],
      ),
    );
    const rows = await visible(time, lists, one(time, 60));
    expect(rows[time - 1]).toEqual(range(0, time));
    expect(rows[time - 2]).toEqual([]);
  });

  it('each group of heads has its own list', async () => {
    const inputs = {
      q: zeros(2, 4, 1),
      k: zeros(2, 2, 1),
      v: {
        shape: [2, 2, 1],
        data: Float64Array.from([1, 2, 4, 8]),
      },
      indices: {
        shape: [2, 2, 1],
        data: Int32Array.from([0, 0, 0, 1]),
      },
    };
    const { o } = await call('selectedAttention', inputs, one(2, 1));
    expect([...o!]).toEqual([1, 1, 2, 2, 1, 1, 8, 8]);
  });

  it('trap: the gradient of a key counts each query once, not each list', async () => {
    const inputs = {
      q: zeros(4, 1, 1),
      k: zeros(4, 1, 1),
      v: zeros(4, 1, 1),
      dO: {
        shape: [4, 1, 1],
        data: Float64Array.from([1, 10, 100, 1000]),
      },
      indices: listsOf([0]),
    };
    const { dV } = await bothWays('selectedAttention', inputs, one(4, 4, 4));
    expectClose(dV, [
      1 + 5 + 100 / 3 + 250,
      5 + 100 / 3 + 250,
      100 / 3 + 250,
      250,
    ]);
  });

  it('causality: a changed token changes nothing before it, to the bit', async () => {
    const time = 8;
    const inputs = {
      q: real([time, 2, 3], 1),
      k: real([time, 1, 3], 2),
      v: real([time, 1, 3], 3),
      indices: listsOf(...range(0, 4).map(() => [3, 0, 2, 1])),
    };
    const run = (values: typeof inputs) =>
      call('selectedAttention', values, one(time, 2, 2), 'f32');
    const before = await run(inputs);
    for (const t of range(0, time)) {
      const changed = { ...inputs };
      for (const name of ['k', 'v'] as const) {
        const data = inputs[name].data.slice();
        data.set([3, -5, 7], t * 3);
        changed[name] = { ...inputs[name], data };
      }
      const after = await run(changed);
      expect(after.o!.slice(0, t * 6)).toEqual(before.o!.slice(0, t * 6));
      expect(after.o!.slice(t * 6)).not.toEqual(before.o!.slice(t * 6));
    }
  });

  it('packed sequences are separate ones, and the same twice, to the bit', async () => {
    const sharing = 2;
    const blocking = { length: 1, stride: 1, sharing };
    const lengths = [3, 6];
    const inputs = {
      q: real([9, 2, 3], 1),
      k: real([9, 1, 3], 2),
      v: real([9, 1, 3], 3),
      dO: real([9, 2, 3], 4),
    };
    const indices = randomLists([5, 1, 3], 5);
    const attributes = {
      ...one(1, 2, sharing),
      sequences: Sequences.packed(
        lengths.map((queries) => ({ queries })),
        blocking,
      ),
    };
    const run = () =>
      bothWays('selectedAttention', { ...inputs, indices }, attributes, 'f32');
    const packed = await run();
    expect(await run()).toEqual(packed);
    const own = Object.fromEntries(
      Object.entries(inputs).map(([name, value]) => [name, slice(value, 3, 9)]),
    );
    const alone = await bothWays(
      'selectedAttention',
      {
        ...own,
        indices: {
          shape: [3, 1, 3],
          data: indices.data.slice(6) as Int32Array,
        },
      },
      one(6, 2, sharing),
      'f32',
    );
    for (const [name, values] of Object.entries(alone)) {
      expect(packed[name]!.slice(-values.length), name).toEqual(values);
    }
  });

  it('the order of a list matters to rounding alone', async () => {
    const inputs = {
      q: real([9, 1, 3], 1),
      k: real([9, 1, 3], 2),
      v: real([9, 1, 3], 3),
    };
    const of = (list: number[]) =>
      call(
        'selectedAttention',
        { ...inputs, indices: listsOf(...range(0, 9).map(() => list)) },
        one(9, 3),
      );
    const a = await of([0, 1, 2, -1]);
    const b = await of([2, -1, 1, 0]);
    expectClose(b.o, double(a.o), 1e-15);
    expectClose(b.lse, double(a.lse), 1e-15);
  });
});
