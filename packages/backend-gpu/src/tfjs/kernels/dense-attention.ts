import type { Sequence } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { attend, attendBackward, type Tile } from './attend';
import { assemble, extents, type Piece, pieceOf, zeroRows } from './body';

/** Operands as the contracts have them, `[N, H, D]`. */
export interface Operands {
  readonly q: tf.Tensor;
  readonly k: tf.Tensor;
  readonly v: tf.Tensor;
  readonly qRope?: tf.Tensor | undefined;
  readonly kRope?: tf.Tensor | undefined;
}

type GradientOperands = Operands & {
  readonly dO: tf.Tensor;
  readonly plus?: tf.Tensor | undefined;
};

/** The keys of one sequence, and which of them a query sees. */
export interface Keys {
  readonly start: number;
  readonly count: number;
  /**
   * bool, broadcast to `[C, Hg, T, keys]`, for the queries at positions
   * `[from, from + T)`.
   */
  seen(from: number, count: number): tf.Tensor;
}

/**
 * Softmax attention whose scores are all computed, sequence by sequence and
 * in pieces of queries that bound the memory.
 * @param groups lists of keys that differ; the key heads or more.
 */
export function denseAttention(
  operands: Operands,
  list: readonly Sequence[],
  scale: number,
  keysOf: (sequence: Sequence) => Keys,
  groups = extents(operands.k)[1],
): { o: tf.Tensor; lse: tf.Tensor } {
  const [rows, heads] = extents(operands.q);
  const valueWidth = operands.v.shape[2] ?? 0;
  const os: Piece[] = [];
  const lses: Piece[] = [];
  forEachPiece(operands, list, keysOf, groups, ({ start, tile, seen }) => {
    const found = attend(tile, seen, scale);
    os.push({ start, rows: byQuery(found.o) });
    lses.push({
      start,
      rows: tf.reshape(byQuery(tf.expandDims(found.lse, -1)), [-1, heads]),
    });
  });
  return {
    o: assemble(os, rows, [heads, valueWidth], zeroRows),
    lse: assemble(lses, rows, [heads], nothing),
  };
}

export function denseAttentionBackward(
  { dO, plus, ...operands }: GradientOperands,
  list: readonly Sequence[],
  scale: number,
  keysOf: (sequence: Sequence) => Keys,
  groups = extents(operands.k)[1],
) {
  const { q, k, v, qRope, kRope } = operands;
  const queries = new Sums(q);
  const queriesRope = new Sums(qRope);
  const [keys, values, keysRope] = [new Sums(k), new Sums(v), new Sums(kRope)];
  forEachPiece(operands, list, keysOf, groups, (piece) => {
    const { start, tile, seen, keyStart, count } = piece;
    const dTile = grouped(tf.slice(dO, start, count), groups);
    const d = attendBackward(tile, seen, scale, dTile);
    queries.add(start, d.q && byQuery(d.q));
    queriesRope.add(start, d.qRope && byQuery(d.qRope));
    keys.add(keyStart, d.k && byKey(d.k, extents(k)[1]));
    values.add(keyStart, d.v && byKey(d.v, extents(v)[1]));
    keysRope.add(keyStart, d.kRope && byKey(d.kRope, 1));
  });
  const dQ = queries.total();
  return {
    dQ: dQ && plus ? tf.add(dQ, plus) : dQ,
    dK: keys.total(),
    dV: values.total(),
    dQRope: queriesRope.total(),
    dKRope: keysRope.total(),
  };
}

interface TilePiece {
  /** Row of the first query. */
  readonly start: number;
  readonly count: number;
  readonly keyStart: number;
  readonly tile: Tile;
  readonly seen: tf.Tensor;
}

function forEachPiece(
  { q, k, v, qRope, kRope }: Operands,
  list: readonly Sequence[],
  keysOf: (sequence: Sequence) => Keys,
  groups: number,
  visit: (piece: TilePiece) => void,
): void {
  const [, heads] = extents(q);
  for (const sequence of list) {
    const { queryStart, queryCount, keyCount } = sequence;
    const keys = keysOf(sequence);
    if (keys.count === 0) continue;
    const of = (x: tf.Tensor) =>
      perGroup(tf.slice(x, keys.start, keys.count), groups);
    const shared = {
      k: of(k),
      v: of(v),
      kRope:
        kRope &&
        tf.transpose(tf.slice(kRope, keys.start, keys.count), [1, 0, 2]),
    };
    const step = pieceOf(heads * keys.count);
    for (let from = 0; from < queryCount; from += step) {
      const count = Math.min(step, queryCount - from);
      const start = queryStart + from;
      const part = (x: tf.Tensor) => grouped(tf.slice(x, start, count), groups);
      visit({
        start,
        count,
        keyStart: keys.start,
        tile: { ...shared, q: part(q), qRope: qRope && part(qRope) },
        seen: keys.seen(keyCount - queryCount + from, count),
      });
    }
  }
}

/** `[T, H, D]` to `[C, Hg, T, D]` */
export function grouped(x: tf.Tensor, groups: number): tf.Tensor {
  const [count, heads, width] = extents(x);
  return tf.reshape(tf.transpose(x, [1, 0, 2]), [
    groups,
    heads / groups,
    count,
    width,
  ]);
}

/** `[Tk, G, D]` as each of C lists reads it, `[C, Tk, D]`. */
export function perGroup(x: tf.Tensor, lists: number): tf.Tensor {
  const [count, groups, width] = extents(x);
  const each = tf.reshape(tf.transpose(x, [1, 0, 2]), [
    groups,
    1,
    count,
    width,
  ]);
  return tf.reshape(tf.tile(each, [1, lists / groups, 1, 1]), [
    lists,
    count,
    width,
  ]);
}

/** `[C, Hg, T, D]` to `[T, H, D]` */
function byQuery(x: tf.Tensor): tf.Tensor {
  const [groups = 0, members = 0, count = 0, width = 0] = x.shape;
  const heads = tf.reshape(x, [groups * members, count, width]);
  return tf.transpose(heads, [1, 0, 2]);
}

/** Gradients of C lists of keys, summed into their G groups: `[Tk, G, D]`. */
function byKey(x: tf.Tensor, groups: number): tf.Tensor {
  const [lists, count, width] = extents(x);
  const each = tf.reshape(x, [groups, lists / groups, count, width]);
  return tf.transpose(tf.sum(each, 1), [1, 0, 2]);
}

/** The LSE of queries that see nothing. */
const nothing = (shape: number[]) => tf.fill(shape, Number.NEGATIVE_INFINITY);

/** Gradients of an operand, added up by rows. */
class Sums {
  private readonly pieces = new Map<number, tf.Tensor>();

  constructor(private readonly operand: tf.Tensor | undefined) {}

  add(start: number, rows: tf.Tensor | undefined): void {
    if (!rows) return;
    const before = this.pieces.get(start);
    this.pieces.set(start, before ? tf.add(before, rows) : rows);
  }

  total(): tf.Tensor | undefined {
    const { operand } = this;
    if (!operand) return undefined;
    const pieces = [...this.pieces].map(([start, rows]) => ({ start, rows }));
    const [count = 0, ...shape] = operand.shape;
    return assemble(pieces, count, shape, zeroRows);
  }
}
