import { Sequences } from '@asa/core';
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

const window = fc.constantFrom(undefined, 1, 2, 3, 7, 8, 9, 100);

/** One head of one sequence. */
const one = (time: number, window?: number) => ({
  sequences: Sequences.uniform(1, time),
  scale: 0.5,
  window,
});

const uniform = (time: number) => ({
  q: zeros(time, 1, 1),
  k: zeros(time, 1, 1),
  v: identity(time),
});

describe('attention', () => {
  it('is causal softmax attention, with all its gradients', () =>
    fc.assert(
      fc.asyncProperty(
        parts(true),
        widths,
        window,
        async (parts, widths, window) => {
          const sequences = layOut(parts);
          const rows = sequences.queryRows + 1;
          const inputs = operands(widths, rows, rows);
          const heads = inputs.q!.shape[1]!;
          const dO = real([rows, heads, widths.valueWidth], widths.start + 5);
          const attributes = { sequences, scale: 0.6, window };
          const want = textbook({ ...inputs, dO }, sequences, {
            scale: 0.6,
            keysOf: ({ keyStart, keyCount }) => ({
              start: keyStart,
              count: keyCount,
            }),
            sees: (_, t, j) => j <= t && t - j < (window ?? 1e9),
          });
          const got = await bothWays(
            'attention',
            { ...inputs, dO },
            attributes,
          );
          expect(Object.keys(got).sort()).toEqual(Object.keys(want).sort());
          for (const [name, values] of Object.entries(want)) {
            expectResults(got[name], values);
          }
        },
      ),
      { numRuns: 60 },
    ));

  it('takes queries that are the last of their keys', () =>
    fc.assert(
      fc.asyncProperty(
        parts(false),
        widths,
        window,
        async (parts, widths, window) => {
          const sequences = layOut(parts);
          const inputs = operands(
            widths,
            sequences.queryRows + 2,
            sequences.keyRows + 1,
          );
          const want = textbook(inputs, sequences, {
            scale: 0.6,
            keysOf: ({ keyStart, keyCount }) => ({
              start: keyStart,
              count: keyCount,
            }),
            sees: (_, t, j) => j <= t && t - j < (window ?? 1e9),
          });
          const attributes = { sequences, scale: 0.6, window };
          const got = await call('attention', inputs, attributes);
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
        window,
        async (parts, widths, window) => {
          const sequences = layOut(parts);
          const rows = sequences.queryRows + 1;
          const inputs = operands(widths, rows, rows);
          const attributes = { sequences, scale: 0.6, window };
          const names = Object.keys(inputs);
          await checkGradient('attention', inputs, attributes, 'o', names);
        },
      ),
      { numRuns: 6 },
    ));

  // Longer than the arrays that a row starts with.
  it.each([1, 2, 63, 64, 65, 129, 257])(
    'sees itself and all before it, T = %i',
    async (time) => {
      const { o, lse } = await call('attention', uniform(time), one(time));
      expect(seen(o, time)).toEqual(range(0, time).map((t) => range(0, t + 1)));
      expectClose(
        lse,
        range(0, time).map((t) => Math.log(t + 1)),
      );
      expect(o![time * time - 1]).toBeCloseTo(1 / time, 14);
    },
  );

  it.each([1, 2, 3, 6, 7, 8])(
    'trap: the window holds w keys, itself included, w = %i',
    async (window) => {
      const { o } = await call('attention', uniform(7), one(7, window));
      expect(seen(o, 7)).toEqual(
        range(0, 7).map((t) => range(Math.max(0, t - window + 1), t + 1)),
      );
    },
  );

  it('a window of T or more is full attention, to the bit', async () => {
    const time = 13;
    const inputs = {
      q: real([time, 4, 5], 1),
      k: real([time, 2, 5], 2),
      v: real([time, 2, 3], 3),
      dO: real([time, 4, 3], 4),
    };
    const full = await bothWays('attention', inputs, one(time), 'f32');
    for (const w of [time, time + 1]) {
      const got = await bothWays('attention', inputs, one(time, w), 'f32');
      expect(got).toEqual(full);
    }
  });

  it('the rotary scores add to the others, scaled alike', async () => {
    const inputs = {
      q: { shape: [2, 2, 1], data: Float64Array.from([0, 0, 2, 3]) },
      k: { shape: [2, 2, 1], data: Float64Array.from([1, 10, 4, 20]) },
      v: {
        shape: [2, 2, 1],
        data: Float64Array.from([1, 1, 0, 0]),
      },
      qRope: {
        shape: [2, 2, 2],
        data: Float64Array.from([0, 0, 0, 0, 1, 2, 3, 4]),
      },
      kRope: { shape: [2, 1, 2], data: Float64Array.from([5, 6, 7, 6]) },
    };
    const attributes = { sequences: Sequences.uniform(1, 2), scale: 0.25 };
    const { o, lse } = await call('attention', inputs, attributes);
    // Head 0: 2 1 + 17 = 19 and 2 4 + 19 = 27; head 1: 30 + 39, 60 + 45.
    const lse0 = Math.log(Math.exp(19 / 4) + Math.exp(27 / 4));
    const lse1 = Math.log(Math.exp(69 / 4) + Math.exp(105 / 4));
    expectClose(lse?.slice(2), [lse0, lse1]);
    expectClose(o?.slice(2), [
      Math.exp(19 / 4 - lse0),
      Math.exp(69 / 4 - lse1),
    ]);
  });

  it('keys and values may be one tensor; their gradients stay apart', async () => {
    const latent = real([5, 1, 3], 1);
    const apart = { ...latent, data: latent.data.slice() };
    const rest = { q: real([5, 2, 3], 2), dO: real([5, 2, 3], 3) };
    const both = await bothWays(
      'attention',
      { ...rest, k: latent, v: latent },
      one(5),
    );
    const two = await bothWays(
      'attention',
      { ...rest, k: latent, v: apart },
      one(5),
    );
    expect(both).toEqual(two);
    expect(both.dK).not.toEqual(both.dV);
    await checkGradient(
      'attention',
      { q: rest.q, k: latent, v: apart },
      one(5),
      'o',
      ['q', 'k', 'v'],
    );
  });

  it('equal heads in groups are multi-head attention, to the bit', async () => {
    const [time, width] = [6, 3];
    const k = real([time, 2, width], 1);
    const repeat = {
      shape: [time, 6, width],
      data: Float64Array.from(range(0, time * 6 * width), (at) => {
        const [t, head] = [Math.floor(at / 18), Math.floor(at / 3) % 6];
        return k.data[(t * 2 + Math.floor(head / 3)) * 3 + (at % 3)]!;
      }),
    };
    const q = real([time, 6, width], 2);
    const grouped = await call('attention', { q, k, v: k }, one(time));
    const each = await call(
      'attention',
      { q, k: repeat, v: repeat },
      one(time),
    );
    expect(grouped).toEqual(each);
  });

  it('scaling V by a power of two scales the output, to the bit', async () => {
    const q = real([9, 2, 4], 1);
    const v = real([9, 1, 4], 2);
    const twice = { ...v, data: v.data.map((x) => 4 * x) as Float64Array };
    const a = await call('attention', { q, k: v, v }, one(9));
    const b = await call('attention', { q, k: v, v: twice }, one(9));
    expect(b.o).toEqual(double(a.o).map((x) => 4 * x));
    expect(b.lse).toEqual(a.lse);
  });

  it('causality: a changed token changes nothing before it, to the bit', async () => {
    const time = 9;
    const inputs = {
      q: real([time, 2, 3], 1),
      k: real([time, 1, 3], 2),
      v: real([time, 1, 3], 3),
    };
    const before = await call('attention', inputs, one(time), 'f32');
    for (const t of range(0, time)) {
      const changed = Object.fromEntries(
        Object.entries(inputs).map(([name, { shape, data }]) => {
          const width = data.length / time;
          const values = data.slice();
          for (const c of range(0, width)) values[t * width + c] = 7 + c;
          return [name, { shape, data: values }];
        }),
      );
      const after = await call('attention', changed, one(time), 'f32');
      expect(after.o!.slice(0, t * 6)).toEqual(before.o!.slice(0, t * 6));
      expect(after.lse!.slice(0, t * 2)).toEqual(before.lse!.slice(0, t * 2));
      expect(after.o!.slice(t * 6)).not.toEqual(before.o!.slice(t * 6));
    }
  });

  it('the same inputs give the same bits twice', async () => {
    const inputs = {
      q: real([17, 4, 5], 1),
      k: real([17, 2, 5], 2),
      v: real([17, 2, 3], 3),
      dO: real([17, 4, 3], 4),
    };
    const first = await bothWays('attention', inputs, one(17), 'f32');
    expect(await bothWays('attention', inputs, one(17), 'f32')).toEqual(first);
  });

  it('packed sequences are separate ones, to the bit', async () => {
    const lengths = [3, 1, 7];
    const inputs = {
      q: real([11, 2, 3], 1),
      k: real([11, 1, 3], 2),
      v: real([11, 1, 2], 3),
      dO: real([11, 2, 2], 4),
    };
    const packed = await bothWays(
      'attention',
      inputs,
      {
        sequences: Sequences.packed(lengths.map((queries) => ({ queries }))),
        scale: 0.5,
        window: 4,
      },
      'f32',
    );
    let start = 0;
    for (const length of lengths) {
      const own = Object.fromEntries(
        Object.entries(inputs).map(([name, value]) => [
          name,
          slice(value, start, start + length),
        ]),
      );
      const alone = await bothWays('attention', own, one(length, 4), 'f32');
      for (const [name, values] of Object.entries(alone)) {
        const width = values.length / length;
        expect(
          packed[name]!.slice(start * width, (start + length) * width),
          name,
        ).toEqual(values);
      }
      start += length;
    }
  });

  it('prefill and decode give the bits of one prefill', async () => {
    const time = 8;
    const q = real([time, 2, 3], 1);
    const k = real([time, 1, 3], 2);
    const v = real([time, 1, 2], 3);
    const whole = await call('attention', { q, k, v }, one(time, 5), 'f32');
    for (const past of range(0, time)) {
      const sequences = Sequences.uniform(1, time - past, time);
      const rest = await call(
        'attention',
        { q: slice(q, past, time), k, v },
        { sequences, scale: 0.5, window: 5 },
        'f32',
      );
      expect(rest.o).toEqual(whole.o!.slice(past * 4));
      expect(rest.lse).toEqual(whole.lse!.slice(past * 2));
    }
  });

  it('rows of no sequence give 0, LSE -inf and gradients 0', async () => {
    const sequences = layOut([{ queries: 2, past: 0, gap: 1 }]);
    const inputs = {
      q: real([5, 1, 2], 1),
      k: real([5, 1, 2], 2),
      v: real([5, 1, 2], 3),
      qRope: real([5, 1, 2], 4),
      kRope: real([5, 1, 2], 5),
      dO: real([5, 1, 2], 6),
    };
    const got = await bothWays('attention', inputs, { sequences, scale: 1 });
    expect([...got.lse!].map(Number.isFinite)).toEqual([
      ...[false, true, true, false, false],
    ]);
    expect(got.lse![0]).toBe(-Infinity);
    for (const name of ['o', 'dQ', 'dK', 'dV', 'dQRope', 'dKRope']) {
      const rows = range(0, 5).map((row) =>
        got[name]!.slice(2 * row, 2 * row + 2).every((x) => Object.is(x, 0)),
      );
      // The first query's gradient is 0 but for dV: it sees one key.
      expect([rows[0], rows[3], rows[4]], name).toEqual([true, true, true]);
      expect(rows[2], name).toBe(false);
    }
  });

  it('a query that sees one key gives its value, and no gradient to scores', async () => {
    const inputs = {
      q: real([1, 2, 3], 1),
      k: real([1, 1, 3], 2),
      v: real([1, 1, 2], 3),
      dO: real([1, 2, 2], 4),
    };
    const got = await bothWays('attention', inputs, one(1));
    const [a, b, c, d] = inputs.dO.data;
    expect([...got.o!]).toEqual([...inputs.v.data, ...inputs.v.data]);
    expectClose(got.dV, [a! + c!, b! + d!]);
    for (const x of [...got.dQ!, ...got.dK!])
      expect(Math.abs(x)).toBeLessThan(1e-15);
  });

  it('large scores neither overflow nor give NaN', async () => {
    const big = { shape: [3, 1, 1], data: Float64Array.from([1e4, -1e4, 1e4]) };
    const inputs = { q: big, k: big, v: identity(3), dO: real([3, 1, 3], 1) };
    const { o, lse, ...gradients } = await bothWays(
      'attention',
      inputs,
      { sequences: Sequences.uniform(1, 3), scale: 1 },
      'f32',
    );
    expect([...o!]).toEqual([1, 0, 0, 0, 1, 0, 0.5, 0, 0.5]);
    expectClose(lse, [1e8, 1e8, 1e8 + Math.log(2)], 1e-7);
    for (const values of Object.values(gradients)) {
      expect([...values].every(Number.isFinite)).toBe(true);
    }
  });

  it('no sequence at all is no work', async () => {
    const inputs = { q: zeros(0, 1, 2), k: zeros(0, 1, 2), v: zeros(0, 1, 3) };
    const sequences = new Sequences([]);
    const got = await call('attention', inputs, { sequences, scale: 1 });
    expect(got.o).toEqual(new Float64Array(0));
    const rows = { ...inputs, q: real([2, 1, 2], 1) };
    const two = await call('attention', rows, { sequences, scale: 1 });
    expect([...two.o!]).toEqual([0, 0, 0, 0, 0, 0]);
    expect([...two.lse!]).toEqual([-Infinity, -Infinity]);
  });

  it.each(['f32', 'f16', 'bf16'] as const)(
    'is summed in double and rounded once, %s',
    async (dtype) => {
      const inputs = {
        q: real([33, 2, 4], 1),
        k: real([33, 1, 4], 2),
        v: real([33, 1, 4], 3),
      };
      const want = await call('attention', inputs, one(33));
      const got = await call('attention', inputs, one(33), dtype);
      if (dtype === 'f32') expectClose(got.o, double(want.o), 2e-7);
      else expect(got.o).toBeInstanceOf(Uint16Array);
      // Operands are rounded: 2^-9 a factor in bf16.
      expectClose(got.lse, double(want.lse), dtype === 'f32' ? 2e-7 : 5e-3);
      expect(got.lse).toBeInstanceOf(Float32Array);
    },
  );
});
