import {
  operators,
  Scope,
  Sequences,
  type Shape,
  type Tensor,
} from '@asa/core';
import { CountingBackend } from '@asa/core/bench';
import { describe, expect, it } from 'vitest';

const counting = new CountingBackend();
const scope = new Scope(counting);
const tensor = (...shape: Shape) => scope.empty(shape, 'f16');
const indices = (...shape: Shape) => scope.empty(shape, 'i32');

/** Queries and keys of three sequences: fresh, continued, one token. */
const counts = [
  { queries: 23, keys: 23 },
  { queries: 7, keys: 38 },
  { queries: 1, keys: 9 },
];
const blocking = { length: 8, stride: 4, sharing: 4 };
const sequences = Sequences.packed(counts, blocking);
const [heads, groups, width, rotary] = [4, 2, 6, 2] as const;
const [queries, keys] = [31, 70];
const blocks = sequences.blockRows(blocking);
const lse = scope.empty([queries, heads], 'f32');
const q = tensor(queries, heads, width);
const qRope = tensor(queries, heads, rotary);
const c = tensor(keys, groups, width);
const kRope = tensor(keys, 1, rotary);

/** Counts by asking every pair. */
function pairs(sees: (query: number, key: number) => boolean): number {
  let sum = 0;
  for (const { queries, keys } of counts) {
    for (let t = keys - queries; t < keys; t++) {
      for (let j = 0; j < keys; j++) if (sees(t, j)) sum += 1;
    }
  }
  return sum;
}

function cost(run: () => unknown) {
  counting.takeCost();
  run();
  return counting.takeCost();
}

const halves = (...tensors: Tensor[]) =>
  tensors.reduce((sum, { size }) => sum + 2 * size, 0);

describe('FLOPs', () => {
  const dense = { q, k: c, v: c, qRope, kRope };
  const scale = 1;
  const forward = 2 * (width + rotary + width);
  const backward = 2 * (3 * (width + rotary) + 2 * width);

  it('of matrix products are two a multiplication', () => {
    const product = (a: Tensor, b: Tensor, attributes: object) =>
      cost(() => scope.run(operators.matmul, { a, b }, attributes));
    const flops = 2 * 5 * 7 * 11;
    const bytes = 2 * (5 * 7 + 7 * 11 + 5 * 11);
    expect(product(tensor(5, 7), tensor(7, 11), {})).toEqual({ flops, bytes });
    expect(product(tensor(7, 5), tensor(7, 11), { transposeA: true })).toEqual({
      flops,
      bytes,
    });
    expect(product(tensor(5, 7), tensor(11, 7), { transposeB: true })).toEqual({
      flops,
      bytes,
    });
  });

  it('of matrices a head count every head', () => {
    const [n, m] = [5, 3];
    const x = tensor(n, groups, width);
    const w = tensor(heads, m, width);
    const dy = tensor(n, heads, m);
    const flops = 2 * n * heads * m * width;
    for (const run of [
      () => scope.run(operators.headMatmul, { x, w }, {}),
      () => scope.run(operators.headMatmulBackwardInput, { dy, w }, { groups }),
      () => scope.run(operators.headMatmulBackwardWeight, { x, dy }, {}),
    ]) {
      expect(cost(run).flops).toBe(flops);
    }
  });

  it.each([undefined, 1, 5, 1000])('of attention in window %s', (window) => {
    const attributes = { sequences, scale, ...(window && { window }) };
    const { flops } = cost(() =>
      scope.run(operators.attention, dense, attributes),
    );
    const seen = pairs((t, j) => j <= t && j > t - (window ?? 1e9));
    expect(flops).toBe(seen * heads * forward);
  });

  it('of compressed attention count whole blocks of the past', () => {
    const k = tensor(blocks, groups, width);
    const { length, stride } = blocking;
    const attributes = { sequences, scale, length, stride };
    const inputs = { q, k, v: k, qRope, kRope: tensor(blocks, 1, rotary) };
    const { flops } = cost(() =>
      scope.run(operators.compressedAttention, inputs, attributes),
    );
    const seen = pairs((t, b) => b * stride + length - 1 <= t);
    expect(flops).toBe(seen * heads * forward);
  });

  it('of a choice count the scores of the leaders', () => {
    const k = tensor(blocks, groups, width);
    const { length, stride, sharing } = blocking;
    const attributes = {
      ...{ sequences, scale, groups, length, stride, sharing },
      ...{ blockSize: 8, count: 3, initial: 1, local: 1 },
    };
    const inputs = {
      ...{ q, k, qRope, kRope: tensor(blocks, 1, rotary), lse },
      previous: indices(3, groups, 3),
    };
    const { flops } = cost(() =>
      scope.run(operators.selectBlocks, inputs, attributes),
    );
    const seen = pairs(
      (t, b) => t % sharing === 0 && b * stride + length - 1 <= t,
    );
    expect(flops).toBe(seen * heads * 2 * (width + rotary));
  });

  it.each([1, 3, 100])('of %s selected blocks', (count) => {
    const [blockSize, sharing] = [8, 4];
    const rows = sequences.leaderRows(sharing);
    const inputs = { ...dense, indices: indices(rows, groups, count) };
    const attributes = { sequences, scale, blockSize, sharing };
    const { flops } = cost(() =>
      scope.run(operators.selectedAttention, inputs, attributes),
    );
    // Any list of as many blocks as there are that holds the own one.
    const seen = pairs((t, j) => {
      const [own, block] = [
        Math.floor(t / blockSize),
        Math.floor(j / blockSize),
      ];
      return j <= t && (block === own || block < count - 1);
    });
    expect(flops).toBe(seen * heads * forward);
  });

  it('of a backward pass are five products for two', () => {
    const own = Sequences.uniform(1, 19);
    const rows = (t: Tensor) => tensor(19, ...t.shape.slice(1));
    const o = rows(q);
    const inputs = {
      ...{ q: rows(q), k: rows(c), v: rows(c), qRope: rows(qRope) },
      ...{ kRope: rows(kRope), o, dO: rows(q) },
      lse: scope.empty([19, heads], 'f32'),
    };
    const { flops } = cost(() =>
      scope.run(operators.attentionBackward, inputs, { sequences: own, scale }),
    );
    expect(flops).toBe(((19 * 20) / 2) * heads * backward);
  });
});

describe('bytes', () => {
  it('of what has no formula are its operands and results', () => {
    const [a, b] = [tensor(5, 7), tensor(5, 7)];
    const run = () => scope.run(operators.add, { a, b }, {});
    expect(cost(run)).toEqual({ flops: 0, bytes: 3 * halves(a) });
    const twice = () => scope.run(operators.add, { a, b: a }, {});
    expect(cost(twice).bytes).toBe(2 * halves(a));
  });

  it('of a look-up are the rows that it reads', () => {
    const x = tensor(1000, 8);
    const rows = indices(3);
    const { bytes } = cost(() =>
      scope.run(operators.gatherRows, { x, rows }, {}),
    );
    expect(bytes).toBe(3 * 4 + 2 * 3 * 8 * 2);
  });

  it('of a window are its keys, of a cache the rows in use', () => {
    const cache = tensor(500, groups, width);
    const one = Sequences.packed([{ queries: 1, keys: 40 }]);
    const query = tensor(1, heads, width);
    const read = (window?: number) =>
      cost(() =>
        scope.run(
          operators.attention,
          { q: query, k: cache, v: cache },
          { sequences: one, scale: 1, ...(window && { window }) },
        ),
      ).bytes;
    const row = 2 * groups * width;
    const rest = 2 * halves(query) + 4 * heads;
    expect(read()).toBe(40 * row + rest);
    expect(read(7)).toBe(7 * row + rest);
  });

  it('of selected blocks are those of the lists', () => {
    const cache = tensor(500, groups, width);
    const one = Sequences.packed([{ queries: 1, keys: 400 }]);
    const inputs = {
      ...{ q: tensor(1, heads, width), k: cache, v: cache },
      indices: indices(1, groups, 3),
    };
    const { bytes } = cost(() =>
      scope.run(operators.selectedAttention, inputs, {
        ...{ sequences: one, scale: 1, blockSize: 8, sharing: 1 },
      }),
    );
    const rest = 2 * halves(inputs.q) + 4 * heads + 4 * inputs.indices.size;
    expect(bytes).toBe(3 * 8 * 2 * groups * width + rest);
  });
});
