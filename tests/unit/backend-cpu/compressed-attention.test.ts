import { blockCount, Sequences } from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bothWays,
  double,
  expectResults,
  identity,
  layOut,
  operands,
  parts,
  range,
  seen,
  slice,
  textbook,
  widths,
  zeros,
} from './attention-reference';
import { call, checkGradient, expectClose, real } from './helpers';

/** `d` divides `l`. */
const blocking = fc
  .record({
    stride: fc.constantFrom(1, 2, 3, 4),
    times: fc.constantFrom(1, 2, 3),
  })
  .map(({ stride, times }) => ({ stride, length: stride * times }));

interface Blocks {
  readonly length: number;
  readonly stride: number;
}

const blocksOf = (blocks: Blocks) => (tokens: number) =>
  blockCount(tokens, blocks);

const textbookOf = ({ length, stride }: Blocks) => ({
  scale: 0.7,
  // More blocks than there are: the rule alone must leave them out.
  keysOf: ({ blockStart = 0, keyCount = 0 }) => ({
    start: blockStart,
    count: keyCount,
  }),
  sees: (_: unknown, t: number, b: number) => b * stride + length - 1 <= t,
});

const one = (time: number, length: number, stride: number) => ({
  sequences: Sequences.uniform(1, time, time, { length, stride, sharing: 1 }),
  scale: 0.5,
  length,
  stride,
});

describe('compressedAttention', () => {
  it('is softmax attention over whole blocks, with all its gradients', () =>
    fc.assert(
      fc.asyncProperty(
        parts(true),
        widths,
        blocking,
        async (parts, widths, blocks) => {
          const sequences = layOut(parts, blocksOf(blocks));
          const rows = sequences.queryRows + 1;
          const inputs = operands(
            widths,
            rows,
            sequences.blockRows(blocks) + 1,
          );
          const heads = inputs.q!.shape[1]!;
          const dO = real([rows, heads, widths.valueWidth], widths.start + 5);
          const want = textbook(
            { ...inputs, dO },
            sequences,
            textbookOf(blocks),
          );
          const got = await bothWays(
            'compressedAttention',
            { ...inputs, dO },
            { sequences, scale: 0.7, ...blocks },
          );
          expect(Object.keys(got).sort()).toEqual(Object.keys(want).sort());
          for (const [name, values] of Object.entries(want)) {
            expectResults(got[name], values);
          }
        },
      ),
      { numRuns: 60 },
    ));

  it('takes queries that are the last of their tokens', () =>
    fc.assert(
      fc.asyncProperty(
        parts(false),
        widths,
        blocking,
        async (parts, widths, blocks) => {
          const sequences = layOut(parts, blocksOf(blocks));
          const inputs = operands(
            widths,
            sequences.queryRows + 1,
            sequences.blockRows(blocks) + 1,
          );
          const want = textbook(inputs, sequences, textbookOf(blocks));
          const got = await call('compressedAttention', inputs, {
            sequences,
            scale: 0.7,
            ...blocks,
          });
          expectResults(got.o, want.o!);
          expectResults(got.lse, want.lse!);
        },
      ),
      { numRuns: 40 },
    ));

  it('has the gradients of central differences', () =>
    fc.assert(
      fc.asyncProperty(
        parts(true),
        widths,
        blocking,
        async (parts, widths, blocks) => {
          const sequences = layOut(parts, blocksOf(blocks));
          const inputs = operands(
            widths,
            sequences.queryRows + 1,
            sequences.blockRows(blocks) + 1,
          );
          const attributes = { sequences, scale: 0.7, ...blocks };
          await checkGradient(
            'compressedAttention',
            inputs,
            attributes,
            'o',
            Object.keys(inputs),
          );
        },
      ),
      { numRuns: 6 },
    ));

  it.each([
    [8, 4],
    [4, 4],
    [6, 2],
    [3, 1],
  ])(
    'trap: a block is visible to the token that completes it, l = %i, d = %i',
    async (length, stride) => {
      const time = 3 * length + 1;
      const blocks = blockCount(time, { length, stride });
      const inputs = {
        q: zeros(time, 1, 1),
        k: zeros(blocks, 1, 1),
        v: identity(blocks),
      };
      const { o, lse } = await call(
        'compressedAttention',
        inputs,
        one(time, length, stride),
      );
      // Block b ends with token b d + l - 1.
      const visible = range(0, time).map((t) =>
        range(0, blocks).filter((b) => t >= b * stride + length - 1),
      );
      expect(seen(o, blocks)).toEqual(visible);
      expect(visible[length - 2]).toEqual([]);
      expect(visible[length - 1]).toEqual([0]);
      expect(visible[length - 1 + stride]).toEqual([0, 1]);
      expect(lse![length - 2]).toBe(-Infinity);
      expect(lse![length - 1]).toBe(0);
      expect(lse![length - 1 + stride]).toBeCloseTo(Math.LN2, 14);
    },
  );

  it.each([1, 2, 6, 7])(
    'trap: T < l gives 0, LSE -inf and gradients 0, never NaN, T = %i',
    async (time) => {
      const inputs = {
        q: real([time, 2, 3], 1),
        k: real([2, 1, 3], 2),
        v: real([2, 1, 3], 3),
        qRope: real([time, 2, 2], 4),
        kRope: real([2, 1, 2], 5),
        dO: real([time, 2, 3], 6),
      };
      const { lse, ...rest } = await bothWays(
        'compressedAttention',
        inputs,
        one(time, 8, 4),
        'f32',
      );
      expect(new Set(lse)).toEqual(new Set([-Infinity]));
      for (const [name, values] of Object.entries(rest)) {
        expect(new Set(values), name).toEqual(new Set([0]));
      }
    },
  );

  it('trap: rows that see nothing give no gradient beside rows that do', async () => {
    const [time, length, stride] = [7, 4, 2];
    const inputs = {
      q: real([time, 1, 2], 1),
      k: real([2, 1, 2], 2),
      v: real([2, 1, 2], 3),
      dO: real([time, 1, 2], 4),
    };
    const attributes = one(time, length, stride);
    const got = await bothWays('compressedAttention', inputs, attributes);
    expect([...got.dQ!.slice(0, 6)]).toEqual([0, 0, 0, 0, 0, 0]);
    // Another dO where nothing is visible changes no gradient.
    const dO = { ...inputs.dO, data: inputs.dO.data.slice() };
    dO.data.fill(9, 0, 6);
    const other = await bothWays(
      'compressedAttention',
      { ...inputs, dO },
      attributes,
    );
    expect(other).toEqual(got);
  });

  it('trap: the last partial block is never pooled as visible', async () => {
    // Rows behind the last whole block hold what would be seen at once.
    const k = real([4, 1, 2], 1);
    k.data.fill(1e6, 2 * 2);
    const inputs = { q: real([11, 1, 2], 2), k, v: k };
    const { o } = await call('compressedAttention', inputs, one(11, 4, 4));
    expect(Math.max(...double(o).map(Math.abs))).toBeLessThan(2);
  });

  it('l = d = 1 is full attention, to the bit', async () => {
    const inputs = {
      q: real([9, 2, 3], 1),
      k: real([9, 1, 3], 2),
      v: real([9, 1, 4], 3),
      dO: real([9, 2, 4], 4),
    };
    const full = await bothWays('attention', inputs, one(9, 1, 1), 'f32');
    const got = await bothWays(
      'compressedAttention',
      inputs,
      one(9, 1, 1),
      'f32',
    );
    expect(got).toEqual(full);
  });

  it('causality: a changed block changes nothing before its last token, to the bit', async () => {
    const [time, length, stride] = [13, 4, 2];
    const blocks = blockCount(time, { length, stride });
    const inputs = {
      q: real([time, 2, 3], 1),
      k: real([blocks, 1, 3], 2),
      v: real([blocks, 1, 3], 3),
    };
    const attributes = one(time, length, stride);
    const run = (values: typeof inputs) =>
      call('compressedAttention', values, attributes, 'f32');
    const before = await run(inputs);
    for (const b of range(0, blocks)) {
      const changed = { ...inputs };
      for (const name of ['k', 'v'] as const) {
        const data = inputs[name].data.slice();
        data.set([3, -5, 7], b * 3);
        changed[name] = { ...inputs[name], data };
      }
      const after = await run(changed);
      const first = b * stride + length - 1;
      expect(after.o!.slice(0, first * 6)).toEqual(
        before.o!.slice(0, first * 6),
      );
      for (const t of range(first, time)) {
        expect(after.o!.slice(t * 6, t * 6 + 3)).not.toEqual(
          before.o!.slice(t * 6, t * 6 + 3),
        );
      }
    }
  });

  it('the same inputs give the same bits twice', async () => {
    const inputs = {
      q: real([17, 4, 5], 1),
      k: real([7, 2, 5], 2),
      v: real([7, 2, 3], 3),
      dO: real([17, 4, 3], 4),
    };
    const run = () =>
      bothWays('compressedAttention', inputs, one(17, 4, 2), 'f32');
    expect(await run()).toEqual(await run());
  });

  it('packed sequences are separate ones, and splits are whole, to the bit', async () => {
    const blocks = { length: 4, stride: 2, sharing: 1 };
    const [first, second] = [9, 12];
    const counts = [blockCount(first, blocks), blockCount(second, blocks)];
    const rows = first + second;
    const all = counts[0]! + counts[1]!;
    const inputs = {
      q: real([rows, 2, 3], 1),
      k: real([all, 1, 3], 2),
      v: real([all, 1, 3], 3),
    };
    const packed = await call(
      'compressedAttention',
      inputs,
      {
        ...one(1, 4, 2),
        sequences: Sequences.packed(
          [{ queries: first }, { queries: second }],
          blocks,
        ),
      },
      'f32',
    );
    for (const past of range(0, second)) {
      const rest = await call(
        'compressedAttention',
        {
          q: slice(inputs.q, first + past, rows),
          k: slice(inputs.k, counts[0]!, all),
          v: slice(inputs.v, counts[0]!, all),
        },
        {
          ...one(1, 4, 2),
          sequences: Sequences.uniform(1, second - past, second, blocks),
        },
        'f32',
      );
      expect(rest.o).toEqual(packed.o!.slice((first + past) * 6));
      expect(rest.lse).toEqual(packed.lse!.slice((first + past) * 2));
    }
  });

  it('scores that underflow leave the rest of the row exact', async () => {
    const inputs = {
      q: { shape: [3, 1, 1], data: Float64Array.from([1, 1, 1]) },
      k: { shape: [3, 1, 1], data: Float64Array.from([0, -2000, -4000]) },
      v: identity(3),
      dO: real([3, 1, 3], 1),
    };
    const got = await bothWays('compressedAttention', inputs, one(3, 1, 1));
    expect([...got.o!]).toEqual([1, 0, 0, 1, 0, 0, 1, 0, 0]);
    expectClose(got.lse!.map(Math.exp), [1, 1, 1]);
    expectClose(
      got.dV!.slice(0, 3),
      [0, 1, 2].map((c) =>
        [0, 1, 2].reduce((sum, t) => sum + inputs.dO.data[t * 3 + c]!, 0),
      ),
    );
  });
});
