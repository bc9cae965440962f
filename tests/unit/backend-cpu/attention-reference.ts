import {
  type AttentionOperands,
  type HostArray,
  type OperatorName,
  type Sequence,
  Sequences,
} from '@asa/core';
import fc from 'fast-check';
import { expect } from 'vitest';
import { call, real, type Value, type Values } from './helpers';

/**
 * Attention once more, from the textbook: whole rows of probabilities, a
 * predicate for who sees whom, no LSE in the backward pass. `[row][channel]`
 * arithmetic in double.
 */
export interface Textbook {
  readonly scale: number;
  /** Row of a sequence's key (or block) 0, and how many it has. */
  keysOf(sequence: Sequence): { start: number; count: number };
  sees(
    sequence: Sequence,
    position: number,
    key: number,
    head: number,
  ): boolean;
}

type Operand = Exclude<keyof AttentionOperands, symbol>;

export function textbook(
  inputs: Values,
  sequences: Sequences,
  { scale, keysOf, sees }: Textbook,
): Record<string, Float64Array> {
  const { q, k, v, qRope, kRope } = inputs as Record<Operand, Value>;
  const heads = q.shape[1]!;
  const groups = k.shape[1]!;
  const valueWidth = v.shape[2]!;
  const rows = q.shape[0]! * heads;
  const zeros = ({ data }: Value) => new Float64Array(data.length);
  const o = new Float64Array(rows * valueWidth);
  const lse = new Float64Array(rows).fill(-Infinity);
  const [dQ, dK, dV] = [zeros(q), zeros(k), zeros(v)];
  const gradients: Record<string, Float64Array> = { dQ, dK, dV };
  if (qRope) gradients.dQRope = zeros(qRope);
  if (kRope) gradients.dKRope = zeros(kRope);
  const dO = inputs.dO?.data ?? new Float64Array(o.length);
  const channels = (row: number, width: number) =>
    Array.from({ length: width }, (_, c) => row * width + c);

  for (const sequence of sequences.list) {
    for (let i = 0; i < sequence.queryCount; i++) {
      for (let h = 0; h < heads; h++) {
        const t = sequence.keyCount - sequence.queryCount + i;
        const row = (sequence.queryStart + i) * heads + h;
        const group = Math.floor(h / (heads / groups));
        const { start, count } = keysOf(sequence);
        const keys = Array.from({ length: count }, (_, j) => j)
          .filter((j) => sees(sequence, t, j, h))
          .map((j) => start + j);
        if (keys.length === 0) continue;
        const inner = (a: Value, aRow: number, b: Value, bRow: number) => {
          const width = a.shape[2]!;
          return channels(aRow, width).reduce(
            (sum, at, c) => sum + a.data[at]! * b.data[bRow * width + c]!,
            0,
          );
        };
        const scores = keys.map(
          (key) =>
            (inner(q, row, k, key * groups + group) +
              (qRope ? inner(qRope, row, kRope, key) : 0)) *
            scale,
        );
        const most = Math.max(...scores);
        const total = scores.reduce((sum, s) => sum + Math.exp(s - most), 0);
        const p = scores.map((s) => Math.exp(s - most) / total);
        lse[row] = most + Math.log(total);
        const dP = keys.map((key) =>
          channels(row, valueWidth).reduce((sum, at, c) => {
            const value = v.data[(key * groups + group) * valueWidth + c]!;
            return sum + dO[at]! * value;
          }, 0),
        );
        const mean = p.reduce((sum, weight, j) => sum + weight * dP[j]!, 0);
        keys.forEach((key, j) => {
          const keyRow = key * groups + group;
          const dS = p[j]! * (dP[j]! - mean) * scale;
          for (let c = 0; c < valueWidth; c++) {
            const at = row * valueWidth + c;
            o[at] = o[at]! + p[j]! * v.data[keyRow * valueWidth + c]!;
            const to = keyRow * valueWidth + c;
            dV[to] = dV[to]! + p[j]! * dO[at]!;
          }
          const spread = (
            a: Value,
            dA: Float64Array,
            b: Value,
            dB: Float64Array,
            bRow: number,
          ) => {
            const width = a.shape[2]!;
            for (let c = 0; c < width; c++) {
              const [x, y] = [row * width + c, bRow * width + c];
              dA[x] = dA[x]! + dS * b.data[y]!;
              dB[y] = dB[y]! + dS * a.data[x]!;
            }
          };
          spread(q, dQ, k, dK, keyRow);
          if (qRope) {
            spread(qRope, gradients.dQRope!, kRope, gradients.dKRope!, key);
          }
        });
      }
    }
  }
  return { o, lse, ...gradients };
}

export const widths = fc.record({
  groups: fc.constantFrom(1, 2, 3),
  perGroup: fc.constantFrom(1, 2, 3),
  width: fc.constantFrom(1, 2, 3, 4, 5, 8, 9),
  valueWidth: fc.constantFrom(1, 2, 4, 5, 7, 8),
  rotary: fc.constantFrom(0, 2, 6),
  start: fc.integer({ min: 1, max: 2 ** 30 }),
});

export type Widths = Record<keyof Generated, number>;

type Generated = typeof widths extends fc.Arbitrary<infer T> ? T : never;

/** Random operands. */
export function operands(
  { groups, perGroup, width, valueWidth, rotary, start }: Widths,
  queryRows: number,
  keyRows: number,
): Record<string, Value> {
  const heads = groups * perGroup;
  return {
    q: real([queryRows, heads, width], start),
    k: real([keyRows, groups, width], start + 1),
    v: real([keyRows, groups, valueWidth], start + 2),
    ...(rotary > 0 && {
      qRope: real([queryRows, heads, rotary], start + 3),
      kRope: real([keyRows, 1, rotary], start + 4),
    }),
  };
}

export interface Part {
  readonly queries: number;
  readonly past: number;
  readonly gap: number;
}

const tokens = fc.constantFrom(1, 2, 3, 4, 5, 7, 8, 9, 11, 0);

/** Some sequences with gaps between them; `self` where all keys are queries. */
export const parts = (self: boolean): fc.Arbitrary<Part[]> =>
  fc.array(
    fc.record({
      queries: tokens,
      past: self ? fc.constant(0) : fc.constantFrom(0, 0, 1, 3, 4, 6, 8),
      gap: fc.constantFrom(0, 1, 2),
    }),
    { minLength: 1, maxLength: 3 },
  );

/**
 * Lays sequences out, with gaps of another size on each axis. The queries'
 * and keys' gaps are alike where every key is a query.
 */
export function layOut(
  parts: readonly Part[],
  blocksOf: (tokens: number) => number = () => 0,
  leadersOf: (first: number, count: number) => number = () => 0,
): Sequences {
  const self = parts.every(({ past }) => past === 0);
  let [queryStart, keyStart, blockStart, leaderStart] = [0, 0, 0, 0];
  const list = parts.map(({ queries, past, gap }) => {
    queryStart += gap;
    keyStart += self ? gap : 2 * gap;
    blockStart += 2 - gap;
    leaderStart += gap;
    const keys = past + queries;
    const sequence = {
      queryStart,
      queryCount: queries,
      keyStart,
      keyCount: keys,
      blockStart,
      leaderStart,
    };
    queryStart += queries;
    keyStart += keys;
    blockStart += blocksOf(keys);
    leaderStart += leadersOf(past, queries);
    return sequence;
  });
  return new Sequences(list);
}

/** The forward results and, from `dO`, all gradients. */
export async function bothWays(
  operator: 'attention' | 'compressedAttention' | 'selectedAttention',
  { dO, ...inputs }: Values,
  attributes: object,
  dtype: 'f32' | 'f64' = 'f64',
): Promise<Record<string, HostArray>> {
  const forward = await call(operator, inputs, attributes, dtype);
  const { q, v } = inputs;
  const [rows = 0, heads = 0] = q!.shape;
  const o = { shape: [rows, heads, v!.shape[2]!], data: double(forward.o) };
  const lse = { shape: [rows, heads], data: double(forward.lse) };
  const name: OperatorName = `${operator}Backward`;
  const backward = await call(
    name,
    { ...inputs, o, lse, dO },
    attributes,
    dtype,
  );
  return { ...forward, ...backward };
}

export const double = (data: HostArray | undefined) =>
  Float64Array.from(data ?? []);

/** Some rows of an array of rows; the same for each row count. */
export function slice(value: Value, from: number, to: number): Value {
  const width = value.data.length / value.shape[0]!;
  return {
    shape: [to - from, ...value.shape.slice(1)],
    data: value.data.slice(from * width, to * width) as Float64Array,
  };
}

/** `n` rows of `[1, n]`: the output is then the probabilities themselves. */
export function identity(n: number): Value {
  const data = new Float64Array(n * n);
  for (let i = 0; i < n; i++) data[i * n + i] = 1;
  return { shape: [n, 1, n], data };
}

export function zeros(...shape: number[]): Value {
  return { shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) };
}

/** Which keys each query sees, from the probabilities `[queries, keys]`. */
export function seen(o: HostArray | undefined, keys: number): number[][] {
  const rows = (o?.length ?? 0) / keys;
  return Array.from({ length: rows }, (_, i) =>
    Array.from({ length: keys }, (_, j) => j).filter(
      (j) => o![i * keys + j]! > 0,
    ),
  );
}

export const range = (from: number, to: number): number[] =>
  Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);

/** Equal where infinite, close elsewhere: within 1e-12 of the largest. */
export function expectResults(
  got: ArrayLike<number> | undefined,
  want: Float64Array,
): void {
  const infinite = (x: number) => x === -Infinity;
  const values = Array.from(got ?? []);
  expect(values.map(infinite)).toEqual(Array.from(want, infinite));
  const finite = (x: number) => (infinite(x) ? 0 : x);
  const size = Math.max(1, ...Array.from(want, finite).map(Math.abs));
  expect(values.length).toBe(want.length);
  values.forEach((value, i) => {
    expect(Math.abs(finite(value) - finite(want[i]!))).toBeLessThan(
      1e-12 * size,
    );
  });
}
