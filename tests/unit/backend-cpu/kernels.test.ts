import {
  ArgumentError,
  bf16ToF32,
  type DType,
  f16ToF32,
  type HostArray,
  type OperatorName,
  Sequences,
} from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  call,
  count,
  encode,
  expectClose,
  extent,
  ints,
  real,
  reals,
  seed,
  type Value,
  type Values,
} from './helpers';

const runs = { numRuns: 40 };

/** The element at an index of a row-major array. */
function at({ shape, data }: Value, ...index: number[]): number {
  return data[index.reduce((sum, i, axis) => sum * shape[axis]! + i, 0)]!;
}

/** An array from a function of the index, row-major. */
function tabulate(
  shape: readonly number[],
  of: (...index: number[]) => number,
): Float64Array {
  return Float64Array.from({ length: count(shape) }, (_, flat) => {
    const index = shape.map(() => 0);
    let rest = flat;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = rest % shape[axis]!;
      rest = Math.floor(rest / shape[axis]!);
    }
    return of(...index);
  });
}

function sum(n: number, term: (i: number) => number): number {
  let total = 0;
  for (let i = 0; i < n; i++) total += term(i);
  return total;
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

describe('matmul', () => {
  const big = fc.oneof(extent, fc.constantFrom(127, 128, 129));
  it('is the sum over the inner index in all four transpose cases', () =>
    fc.assert(
      fc.asyncProperty(
        extent,
        extent,
        big,
        fc.boolean(),
        fc.boolean(),
        seed,
        async (m, k, n, transposeA, transposeB, start) => {
          const a = real(transposeA ? [k, m] : [m, k], start);
          const b = real(transposeB ? [n, k] : [k, n], start + 1);
          const { y } = await call(
            'matmul',
            { a, b },
            { transposeA, transposeB },
          );
          const want = tabulate([m, n], (i, j) =>
            sum(
              k,
              (l) =>
                (transposeA ? at(a, l, i) : at(a, i, l)) *
                (transposeB ? at(b, j, l) : at(b, l, j)),
            ),
          );
          expectClose(y, want);
        },
      ),
      runs,
    ));

  it('gives a row the same bits alone and among others', () =>
    fc.assert(
      fc.asyncProperty(
        extent,
        extent,
        extent,
        fc.boolean(),
        seed,
        async (m, k, n, transposeB, start) => {
          const a = real([m + 4, k], start);
          const b = real(transposeB ? [n, k] : [k, n], start + 1);
          const all = (await call('matmul', { a, b }, { transposeB })).y!;
          const row = { shape: [1, k], data: a.data.slice(0, k) };
          const one = (await call('matmul', { a: row, b }, { transposeB })).y!;
          expect(one).toEqual(all.slice(0, n));
        },
      ),
      runs,
    ));

  it('flattens the leading axes, and sums nothing to 0', async () => {
    const a = real([2, 3, 4], 1);
    const b = real([4, 5], 2);
    const { y } = await call('matmul', { a, b });
    expectClose(
      y,
      tabulate([2, 3, 5], (i, j, c) =>
        sum(4, (k) => at(a, i, j, k) * at(b, k, c)),
      ),
    );
    const empty = { a: real([5, 0], 1), b: real([0, 2], 1) };
    expect((await call('matmul', empty)).y).toEqual(new Float64Array(10));
    const none = { a: real([0, 3], 1), b: real([3, 2], 1) };
    expect((await call('matmul', none)).y).toEqual(new Float64Array(0));
  });

  it('widens 16-bit weights in slabs without losing one', async () => {
    const a = real([1, 1031], 1);
    const b = real([2053, 1031], 2);
    const narrow = await call('matmul', { a, b }, { transposeB: true }, 'bf16');
    const wide = rounded({ a, b }, 'bf16');
    const single = await call('matmul', wide, { transposeB: true }, 'f32');
    expect(narrow.y).toEqual(encode(single.y as Float32Array, 'bf16'));
  });
});

it('headMatmul multiplies each head by its own matrix', () =>
  fc.assert(
    fc.asyncProperty(
      extent,
      extent,
      extent,
      fc.constantFrom(1, 2, 3),
      fc.boolean(),
      seed,
      async (n, m, k, groups, transposeWeight, start) => {
        const share = 1 + (start % 3);
        const heads = groups * share;
        const x = real([n, groups, k], start);
        const w = real(
          transposeWeight ? [heads, k, m] : [heads, m, k],
          start + 1,
        );
        const { y } = await call('headMatmul', { x, w }, { transposeWeight });
        const want = tabulate([n, heads, m], (row, i, out) =>
          sum(
            k,
            (c) =>
              at(x, row, Math.floor(i / share), c) *
              (transposeWeight ? at(w, i, c, out) : at(w, i, out, c)),
          ),
        );
        expectClose(y, want);
      },
    ),
    runs,
  ));

describe('rows', () => {
  it.each<DType>(['f64', 'f32', 'f16', 'bf16'])(
    'gathers %s bit by bit',
    async (dtype) => {
      const x = real([5, 2, 3], 1);
      const { y } = await call(
        'gatherRows',
        { x, rows: ints([4, 1, 1]) },
        {},
        dtype,
      );
      const want = tabulate([3, 2, 3], (i, j, c) => at(x, [4, 1, 1][i]!, j, c));
      expect(y).toEqual(encode(want, dtype));
    },
  );

  it.each<DType>(['f32', 'f16', 'bf16'])(
    'scatters %s and leaves other rows',
    async (dtype) => {
      const inputs = {
        target: real([5, 3], 1),
        x: real([2, 3], 2),
        rows: ints([3, 0]),
      };
      const { target } = await call('scatterRows', inputs, {}, dtype);
      const want = tabulate([5, 3], (row, c) => {
        const from = [3, 0].indexOf(row);
        return from < 0 ? at(inputs.target, row, c) : at(inputs.x, from, c);
      });
      expect(target).toEqual(encode(want, dtype));
    },
  );

  it('scatters indices', async () => {
    const target = { shape: [3, 1], data: Int32Array.of(5, 6, 7) };
    const x = { shape: [1, 1], data: Int32Array.of(9) };
    const result = await call('scatterRows', { target, x, rows: ints([1]) });
    expect(result.target).toEqual(Int32Array.of(5, 9, 7));
  });

  it.each([-1, 5])('refuses row %s of 5', async (row) => {
    const rows = ints([0, row]);
    const x = real([2, 3], 2);
    await expect(
      call('gatherRows', { x: real([5, 3], 1), rows }),
    ).rejects.toThrow(ArgumentError);
    await expect(
      call('scatterRows', { target: real([5, 3], 1), x, rows }),
    ).rejects.toThrow(ArgumentError);
    await expect(
      call('gatherRowsBackward', { dy: x, rows }, { extent: 5 }),
    ).rejects.toThrow(
      new ArgumentError(
        `gatherRowsBackward: rows must be from 0 to 4, got ${row}`,
      ),
    );
  });

  it('sums in the order of i: small after large is lost, before is not', async () => {
    const dy = { shape: [3, 1], data: Float64Array.of(2 ** 53, 1, -(2 ** 53)) };
    const { dx } = await call(
      'gatherRowsBackward',
      { dy, rows: ints([1, 1, 1]) },
      { extent: 2 },
    );
    expect(dx).toEqual(Float64Array.of(0, 0));
    const turned = {
      shape: [3, 1],
      data: Float64Array.of(2 ** 53, -(2 ** 53), 1),
    };
    const other = await call(
      'gatherRowsBackward',
      { dy: turned, rows: ints([1, 1, 1]) },
      { extent: 2 },
    );
    expect(other.dx).toEqual(Float64Array.of(0, 1));
  });
});

describe('cast', () => {
  it('narrows a double in one rounding', async () => {
    // Just above a tie of f16 (and of bf16): rounding to f32 first makes it a tie.
    const data = Float64Array.of(
      1 + 2 ** -11 + 2 ** -40,
      1 + 2 ** -8 + 2 ** -40,
      1e-9,
      -70000,
      1e300,
    );
    const x = { shape: [5], data };
    const f16 = (await call('cast', { x }, { dtype: 'f16' })).y as Uint16Array;
    const bf16 = (await call('cast', { x }, { dtype: 'bf16' }))
      .y as Uint16Array;
    expect(Array.from(f16ToF32(f16))).toEqual([
      1 + 2 ** -10,
      1 + 2 ** -8,
      0,
      Number.NEGATIVE_INFINITY,
      Number.POSITIVE_INFINITY,
    ]);
    expect(Array.from(bf16ToF32(bf16)).slice(0, 2)).toEqual([1, 1 + 2 ** -7]);
    expect(bf16ToF32(bf16)[4]).toBe(Number.POSITIVE_INFINITY);
  });

  it('keeps NaN and the sign of 0', async () => {
    const x = { shape: [2], data: Float64Array.of(Number.NaN, -0) };
    const bits = (await call('cast', { x }, { dtype: 'bf16' }))
      .y as Uint16Array;
    expect(Array.from(bf16ToF32(bits))).toEqual([Number.NaN, -0]);
  });

  it.each<DType>(['f32', 'f16', 'bf16'])('widens %s exactly', async (dtype) => {
    const x = real([9], 3);
    const { y } = await call('cast', { x }, { dtype: 'f64' }, dtype);
    expect(Array.from(y!)).toEqual(Array.from(rounded({ x }, dtype).x!.data));
  });
});

it('rmsNorm divides by the root of the mean square', () =>
  fc.assert(
    fc.asyncProperty(
      extent,
      extent,
      extent,
      fc.boolean(),
      seed,
      async (n, g, d, each, start) => {
        const x = real([n, g, d], start);
        const weight = real(each ? [g, d] : [d], start + 1);
        const { y } = await call('rmsNorm', { x, weight }, { eps: 0.01 });
        const want = tabulate([n, g, d], (i, j, c) => {
          const mean = sum(d, (k) => at(x, i, j, k) ** 2) / d;
          return (
            ((each ? at(weight, j, c) : at(weight, c)) * at(x, i, j, c)) /
            Math.sqrt(mean + 0.01)
          );
        });
        expectClose(y, want);
      },
    ),
    runs,
  ));

describe('rope', () => {
  const inputs = (n: number, h: number, half: number, start: number) => ({
    x: real([n, h, 2 * half], start),
    positions: ints(Array.from({ length: n }, (_, i) => 100_003 * i + 1)),
    frequencies: real([half], start + 1),
  });

  it.each(['half', 'interleaved'])(
    '%s turns each pair as a complex number',
    (style) =>
      fc.assert(
        fc.asyncProperty(
          extent,
          extent,
          extent,
          seed,
          async (n, h, half, start) => {
            const values = inputs(n, h, half, start);
            const { y } = await call('rope', values, { style });
            const want = tabulate([n, h, 2 * half], (t, i, c) => {
              const pair = style === 'half' ? c % half : Math.floor(c / 2);
              const isSecond = style === 'half' ? c >= half : c % 2 === 1;
              const [c1, c2] =
                style === 'half'
                  ? [pair, pair + half]
                  : [2 * pair, 2 * pair + 1];
              const angle =
                values.positions.data[t]! * at(values.frequencies, pair);
              const [x1, x2] = [at(values.x, t, i, c1), at(values.x, t, i, c2)];
              return isSecond
                ? Math.sin(angle) * x1 + Math.cos(angle) * x2
                : Math.cos(angle) * x1 - Math.sin(angle) * x2;
            });
            expectClose(y, want);
          },
        ),
        runs,
      ),
  );

  it.each(['half', 'interleaved'])(
    '%s is undone by its inverse',
    async (style) => {
      const values = inputs(5, 3, 4, 1);
      const { y } = await call('rope', values, { style });
      const turned = { shape: values.x.shape, data: y as Float64Array };
      const back = await call(
        'rope',
        { ...values, x: turned },
        { style, inverse: true },
      );
      expectClose(back.y, values.x.data);
    },
  );

  it('multiplies angles in double, also for f32', async () => {
    const x = { shape: [1, 1, 2], data: Float64Array.of(1, 0.5) };
    const frequency = Math.fround(0.1);
    const frequencies = { shape: [1], data: Float64Array.of(frequency) };
    const values = { x, positions: ints([1_000_003]), frequencies };
    const { y } = await call('rope', values, { style: 'half' }, 'f32');
    const angle = 1_000_003 * frequency;
    expect(y![0]).toBe(Math.fround(Math.cos(angle) - 0.5 * Math.sin(angle)));
  });
});

it('swiglu is silu(gate) times up, or silu alone', async () => {
  const [gate, up] = [real([13], 1), real([13], 2)];
  const silu = tabulate([13], (i) => at(gate, i) * sigmoid(at(gate, i)));
  expectClose((await call('swiglu', { gate })).y, silu);
  expectClose(
    (await call('swiglu', { gate, up })).y,
    silu.map((s, i) => s * at(up, i)),
  );
});

describe('crossEntropy', () => {
  it('is -log of the softmax, and 0 for target -1', () =>
    fc.assert(
      fc.asyncProperty(extent, extent, seed, async (n, vocabulary, start) => {
        const logits = real([n, vocabulary], start);
        const targets = ints(
          Array.from(
            { length: n },
            (_, i) => ((start + i) % (vocabulary + 1)) - 1,
          ),
        );
        const { loss, lse } = await call('crossEntropy', { logits, targets });
        const lseWant = tabulate([n], (i) =>
          Math.log(sum(vocabulary, (v) => Math.exp(at(logits, i, v)))),
        );
        expectClose(lse, lseWant);
        const want = lseWant.map((l, i) =>
          targets.data[i] === -1 ? 0 : l - at(logits, i, targets.data[i]!),
        );
        for (let i = 0; i < n; i++) expect(loss![i]).toBeCloseTo(want[i]!, 12);
      }),
      runs,
    ));

  it('survives logits whose exponentials overflow', async () => {
    const logits = { shape: [1, 2], data: Float64Array.of(5000, 4999) };
    const { loss } = await call('crossEntropy', { logits, targets: ints([1]) });
    expect(loss![0]).toBeCloseTo(1 + Math.log1p(Math.exp(-1)), 10);
  });

  it('gives an uncounted row the gradient 0', async () => {
    const inputs = {
      logits: real([2, 3], 1),
      targets: ints([-1, 2]),
      lse: real([2], 2),
      dLoss: real([2], 3),
    };
    const { dLogits } = await call('crossEntropyBackward', inputs);
    expect(Array.from(dLogits!.slice(0, 3))).toEqual([0, 0, 0]);
    expect(dLogits!.slice(3).every((d) => d !== 0)).toBe(true);
  });
});

describe('adamw', () => {
  const attributes = {
    learningRate: 0.1,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-3,
    weightDecay: 0.2,
    step: 3,
  };
  const inputs = {
    parameter: real([7], 1),
    gradient: real([7], 2),
    m: real([7], 3),
    v: { shape: [7], data: reals(7, 4).map(Math.abs) },
  };
  const step = (scale: number) => {
    const g = Float64Array.from(inputs.gradient.data, (x) => x * scale);
    const m = g.map((x, i) => 0.9 * at(inputs.m, i) + 0.1 * x);
    const v = g.map((x, i) => 0.99 * at(inputs.v, i) + 0.01 * x * x);
    const parameter = g.map((_, i) => {
      const decayed =
        at(inputs.parameter, i) - 0.1 * 0.2 * at(inputs.parameter, i);
      const [mHat, vHat] = [m[i]! / (1 - 0.9 ** 3), v[i]! / (1 - 0.99 ** 3)];
      return decayed - (0.1 * mHat) / (Math.sqrt(vHat) + 1e-3);
    });
    return { parameter, m, v };
  };

  it.each([
    ['no clip', undefined, 1],
    ['a norm below the clip', 100, 1],
    ['a norm above the clip', 0.5, 0.5 / (2 + 1e-6)],
  ])('steps with %s', async (_, clip, scale) => {
    const squaredNorm = { shape: [1], data: Float64Array.of(4) };
    const got = await call(
      'adamw',
      { ...inputs, squaredNorm },
      { ...attributes, clip },
    );
    const want = step(scale);
    expectClose(got.parameter, want.parameter);
    expectClose(got.m, want.m);
    expectClose(got.v, want.v);
  });

  it.each([undefined, 0.5])(
    'divides by the loss scale, clip %s',
    async (clip) => {
      const squaredNorm = { shape: [1], data: Float64Array.of(4) };
      const plain = await call(
        'adamw',
        { ...inputs, squaredNorm },
        { ...attributes, clip },
      );
      const scaled = await call(
        'adamw',
        {
          ...inputs,
          gradient: {
            shape: [7],
            data: inputs.gradient.data.map((x) => x * 8),
          },
          squaredNorm: { shape: [1], data: Float64Array.of(4 * 64) },
        },
        { ...attributes, clip, lossScale: 8 },
      );
      expect(scaled).toEqual(plain);
    },
  );

  it('takes a first step of the learning rate against the sign', async () => {
    const zero = { shape: [7], data: new Float64Array(7) };
    const first = { ...attributes, eps: 0, weightDecay: 0, step: 1 };
    const { parameter } = await call(
      'adamw',
      { ...inputs, m: zero, v: zero },
      first,
    );
    expectClose(
      parameter,
      inputs.parameter.data.map(
        (p, i) => p - 0.1 * Math.sign(at(inputs.gradient, i)),
      ),
    );
  });
});

it('squaredNorm adds to the total', async () => {
  const x = real([3, 5], 1);
  const total = { shape: [1], data: Float64Array.of(2) };
  const want = 2 + sum(15, (i) => x.data[i]! ** 2);
  expectClose((await call('squaredNorm', { x, total })).total, [want]);
});

it.each([2, 3])(
  'gatedSum weighs %s branches by their sigmoids',
  async (branches) => {
    const shape = [5, 3, 7];
    const o = [real(shape, 1), real(shape, 2), real(shape, 3)];
    const [gates, bias] = [real([5, 3, branches], 4), real([3, branches], 5)];
    const [compressed, selected, window] = o.slice(0, branches);
    for (const b of [bias, undefined]) {
      const { y } = await call('gatedSum', {
        gates,
        bias: b,
        compressed,
        selected,
        window,
      });
      const want = tabulate(shape, (n, h, c) =>
        sum(
          branches,
          (k) =>
            sigmoid(at(gates, n, h, k) + (b ? at(b, h, k) : 0)) *
            at(o[k]!, n, h, c),
        ),
      );
      expectClose(y, want);
    }
  },
);

describe('blocks', () => {
  // Sequences apart from each other: rows 0, 8.. and block row 0 and 4 are nobody's.
  const place = (keyStart: number, keyCount: number, blockStart: number) => ({
    queryStart: 0,
    queryCount: 0,
    keyStart,
    keyCount,
    blockStart,
    leaderStart: 0,
  });
  const sequences = new Sequences([
    place(1, 7, 1),
    place(10, 3, 9),
    place(14, 4, 5),
  ]);
  const attributes = { sequences, length: 4, stride: 2 };
  const x = real([19, 2, 3], 1);
  /** Block row to its first token row. Sequence 1 is too short for a block. */
  const starts = new Map([
    [1, 1],
    [2, 3],
    [5, 14],
  ]);

  it('pools whole blocks by their mean; rows of no block are 0', async () => {
    const want = tabulate([9, 2, 3], (b, g, c) => {
      const start = starts.get(b);
      return start === undefined
        ? 0
        : sum(4, (m) => at(x, start + m, g, c) / 4);
    });
    // 9 + 0 blocks: the empty sequence still names a row.
    expectClose((await call('compress', { x }, attributes)).y, want);
  });

  it('pools by the softmax of the logits', async () => {
    const logits = real([2, 4], 7);
    const w = (g: number, m: number) =>
      Math.exp(at(logits, g, m)) / sum(4, (k) => Math.exp(at(logits, g, k)));
    const want = tabulate([9, 2, 3], (b, g, c) => {
      const start = starts.get(b);
      return start === undefined
        ? 0
        : sum(4, (m) => w(g, m) * at(x, start + m, g, c));
    });
    expectClose((await call('compress', { x, logits }, attributes)).y, want);
  });

  it('survives logits whose exponentials overflow', async () => {
    const logits = {
      shape: [2, 4],
      data: Float64Array.of(2000, 1, 1, 1, 1, 1, 1, 2000),
    };
    const { y } = await call('compress', { x, logits }, attributes);
    expect(y![1 * 6]).toBe(at(x, 1, 0, 0));
    expect(y![1 * 6 + 3]).toBe(at(x, 4, 1, 0));
  });

  it('lays the rows of a block side by side, with their bias', async () => {
    const bias = real([2, 4, 3], 7);
    for (const b of [bias, undefined]) {
      const want = tabulate([9, 2, 4, 3], (row, g, m, c) => {
        const start = starts.get(row);
        return start === undefined
          ? 0
          : at(x, start + m, g, c) + (b ? at(b, g, m, c) : 0);
      });
      expectClose(
        (await call('unfoldBlocks', { x, bias: b }, attributes)).y,
        want,
      );
    }
  });

  it('gives rows outside every block the gradient 0', async () => {
    const dY = real([9, 2, 3], 3);
    const { dX } = await call('compressBackward', { x, dY }, attributes);
    const covered = new Set(
      [...starts.values()].flatMap((s) => [s, s + 1, s + 2, s + 3]),
    );
    for (let row = 0; row < 19; row++) {
      expect(
        dX!
          .slice(row * 6, row * 6 + 6)
          .every((d) => (d === 0) !== covered.has(row)),
      ).toBe(true);
    }
  });
});

describe('linearAttention', () => {
  const attributes = { scale: 0.7, temperature: 2, chunk: 3 };
  const operands = (rows: number, start: number) => ({
    q: real([rows, 2, 3], start),
    k: real([rows, 2, 3], start + 1),
    v: real([rows, 2, 5], start + 2),
    decay: real([rows, 2], start + 3),
  });

  it('is causal attention whose weights decay', () =>
    fc.assert(
      fc.asyncProperty(
        fc.constantFrom(1, 2, 3, 7, 31),
        seed,
        async (rows, start) => {
          const sequences = Sequences.uniform(1, rows);
          const inputs = operands(rows, start);
          const { q, k, v, decay } = inputs;
          const { o } = await call('linearAttention', inputs, {
            sequences,
            ...attributes,
          });
          const product = (from: number, to: number, h: number) => {
            let a = 1;
            for (let t = from + 1; t <= to; t++)
              a *= Math.sqrt(sigmoid(at(decay, t, h)));
            return a;
          };
          const want = tabulate([rows, 2, 5], (t, h, j) =>
            sum(
              t + 1,
              (s) =>
                0.7 *
                product(s, t, h) *
                sum(3, (i) => at(q, t, h, i) * at(k, s, h, i)) *
                at(v, s, h, j),
            ),
          );
          expectClose(o, want);
        },
      ),
      runs,
    ));

  it('goes on from a state as if never interrupted, whatever the chunk', async () => {
    const rows = 1009;
    const inputs = operands(rows, 5);
    const whole = await call('linearAttention', inputs, {
      sequences: Sequences.uniform(1, rows),
      ...attributes,
    });
    const cut = 317;
    const part = (from: number, to: number) =>
      Object.fromEntries(
        Object.entries(inputs).map(([name, { shape, data }]) => {
          const width = data.length / rows;
          return [
            name,
            {
              shape: [to - from, ...shape.slice(1)],
              data: data.slice(from * width, to * width),
            },
          ];
        }),
      );
    const first = await call('linearAttention', part(0, cut), {
      sequences: Sequences.uniform(1, cut),
      ...attributes,
      chunk: 64,
    });
    const state = { shape: [1, 2, 3, 5], data: first.last as Float64Array };
    const second = await call(
      'linearAttention',
      { ...part(cut, rows), state },
      { sequences: Sequences.uniform(1, rows - cut), ...attributes },
    );
    expect([...first.o!, ...second.o!]).toEqual([...whole.o!]);
    expect(second.last).toEqual(whole.last);
  });

  it('keeps packed sequences apart; rows of none are 0', async () => {
    const sequences = Sequences.packed([{ queries: 3 }, { queries: 5 }]);
    const inputs = operands(9, 1);
    const { o, last } = await call('linearAttention', inputs, {
      sequences,
      ...attributes,
    });
    const alone = await call('linearAttention', inputs, {
      sequences: Sequences.uniform(1, 3),
      ...attributes,
    });
    expect(o!.slice(0, 30)).toEqual(alone.o!.slice(0, 30));
    expect(last!.slice(0, 30)).toEqual(alone.last);
    expect(o!.slice(80)).toEqual(new Float64Array(10));
    const dO = real([9, 2, 5], 8);
    const gradients = await call(
      'linearAttentionBackward',
      { ...inputs, dO },
      { sequences, ...attributes },
    );
    for (const [name, width] of [
      ['dQ', 6],
      ['dK', 6],
      ['dV', 10],
      ['dDecay', 2],
    ] as const) {
      expect(gradients[name]!.slice(8 * width)).toEqual(
        new Float64Array(width),
      );
    }
  });

  it('survives decays of either extreme', async () => {
    const inputs = {
      ...operands(3, 1),
      decay: {
        shape: [3, 2],
        data: Float64Array.of(900, -900, 900, -900, 900, -900),
      },
    };
    const { o } = await call('linearAttention', inputs, {
      sequences: Sequences.uniform(1, 3),
      ...attributes,
    });
    expect(o!.every(Number.isFinite)).toBe(true);
  });
});

/** The values that stay when operands are stored in a type. */
function rounded(values: Values, dtype: DType): Record<string, Value> {
  return Object.fromEntries(
    Object.entries(values).flatMap(([name, value]) => {
      if (!value) return [];
      if (value.data instanceof Int32Array) return [[name, value]];
      const bits = encode(value.data, dtype);
      const data =
        dtype === 'bf16'
          ? bf16ToF32(bits as Uint16Array)
          : dtype === 'f16'
            ? f16ToF32(bits as Uint16Array)
            : bits;
      return [
        [
          name,
          { shape: value.shape, data: Float64Array.from(data as Float32Array) },
        ],
      ];
    }),
  );
}

describe('rounding', () => {
  const sequences = Sequences.uniform(1, 9, 9, {
    length: 4,
    stride: 2,
    sharing: 1,
  });
  const blocks = { sequences, length: 4, stride: 2 };
  const wide = [5, 3, 4];
  const cases: [OperatorName, Values, object][] = [
    ['matmul', { a: real([5, 7], 1), b: real([7, 3], 2) }, {}],
    ['headMatmul', { x: real([5, 1, 7], 1), w: real([2, 3, 7], 2) }, {}],
    [
      'headMatmulBackwardInput',
      { dy: real([5, 2, 3], 1), w: real([2, 3, 7], 2) },
      { groups: 1 },
    ],
    [
      'headMatmulBackwardWeight',
      { dy: real([5, 2, 3], 1), x: real([5, 1, 7], 2) },
      {},
    ],
    [
      'gatherRowsBackward',
      { dy: real([5, 3], 1), rows: ints([1, 1, 0, 1, 0]) },
      { extent: 3 },
    ],
    ['add', { a: real([9], 1), b: real([9], 2) }, {}],
    ['rmsNorm', { x: real([5, 7], 1), weight: real([7], 2) }, { eps: 1e-5 }],
    [
      'rmsNormBackward',
      { x: real([5, 7], 1), weight: real([7], 2), dy: real([5, 7], 3) },
      { eps: 1e-5 },
    ],
    ['swiglu', { gate: real([9], 1), up: real([9], 2) }, {}],
    [
      'swigluBackward',
      { gate: real([9], 1), up: real([9], 2), dy: real([9], 3) },
      {},
    ],
    ['compress', { x: real([9, 2, 3], 1), logits: real([2, 4], 2) }, blocks],
    [
      'compressBackward',
      {
        x: real([9, 2, 3], 1),
        logits: real([2, 4], 2),
        dY: real([3, 2, 3], 3),
      },
      blocks,
    ],
    [
      'unfoldBlocks',
      { x: real([9, 2, 3], 1), bias: real([2, 4, 3], 2) },
      blocks,
    ],
    [
      'unfoldBlocksBackward',
      { dY: real([3, 2, 12], 1) },
      { ...blocks, keyRows: 9, bias: true },
    ],
    [
      'gatedSum',
      {
        gates: real([5, 3, 2], 1),
        compressed: real(wide, 2),
        selected: real(wide, 3),
      },
      {},
    ],
    [
      'gatedSumBackward',
      {
        gates: real([5, 3, 2], 1),
        compressed: real(wide, 2),
        selected: real(wide, 3),
        dY: real(wide, 4),
      },
      {},
    ],
    [
      'adamw',
      {
        parameter: real([9], 1),
        gradient: real([9], 2),
        m: real([9], 3),
        v: { shape: [9], data: reals(9, 4).map(Math.abs) },
      },
      {
        learningRate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weightDecay: 0.1,
        step: 2,
      },
    ],
    ['squaredNorm', { x: real([9], 1), total: real([1], 2) }, {}],
  ];

  // Everything is computed in double, so f32 is the f64 result, rounded.
  it.each(cases)(
    '%s rounds its f32 results once',
    async (name, inputs, attributes) => {
      const values = rounded(inputs, 'f32');
      const double = await call(name, values, attributes, 'f64');
      const single = await call(name, values, attributes, 'f32');
      expect(single).toEqual(each(double, 'f32'));
    },
  );

  const narrow = cases.filter(([name]) => name !== 'squaredNorm');
  it.each(narrow)(
    '%s computes 16-bit operands as f32',
    async (name, inputs, attributes) => {
      for (const dtype of ['f16', 'bf16'] as const) {
        const values = rounded(inputs, dtype);
        const single = await call(name, values, attributes, 'f32');
        const half = await call(name, values, attributes, dtype);
        expect(half).toEqual({ ...each(single, dtype), ...statistics(single) });
      }
    },
  );

  function each(results: Record<string, HostArray>, dtype: DType) {
    return Object.fromEntries(
      Object.entries(results).map(([name, data]) => [
        name,
        encode(data, dtype),
      ]),
    );
  }

  /** Results that are f32 beside 16-bit ones. */
  function statistics(results: Record<string, HostArray>) {
    return Object.fromEntries(
      Object.entries(results).filter(([name]) => name.startsWith('delta')),
    );
  }

  it('squaredNorm of bf16 goes into an f32 total', async () => {
    const values = rounded({ x: real([9], 1) }, 'bf16');
    const total = { shape: [1], data: Float64Array.of(1) };
    const single = await call('squaredNorm', { ...values, total }, {}, 'f32');
    const half = await call('squaredNorm', { ...values, total }, {}, 'bf16');
    expect(half).toEqual(single);
  });
});
