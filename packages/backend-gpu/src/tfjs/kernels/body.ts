import type { OperatorName, operators, Tensor } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';

type Parts<Name extends OperatorName> = Parameters<
  NonNullable<import('@asa/core').KernelTable[Name]>
>;

/** The same names with tfjs's tensors; what may be missing may be missing. */
type Views<T> = { readonly [Name in keyof T]: tf.Tensor };

/**
 * What an operator computes: its operands as tfjs's tensors to its outputs,
 * or to the operands that it writes in place. Called inside `tidy`.
 */
type Body<Name extends OperatorName> = (
  inputs: Views<Parts<Name>[0]>,
  attributes: Parts<Name>[2],
  outputs: Parts<Name>[1],
  /** An operand's elements where the host has just written them. */
  written: (operand: keyof Parts<Name>[0]) => ArrayLike<number> | undefined,
) => Readonly<Record<string, tf.Tensor | undefined>>;

/** Some bodies, each of its operator's type. */
export type Bodies<Name extends OperatorName = keyof typeof operators> = {
  readonly [N in Name]: Body<N>;
};

/** Extents of an operand. */
export function extents(x: tf.Tensor | Tensor): [number, number, number] {
  const [a = 1, b = 1, c = 1] = x.shape;
  return [a, b, c];
}

/** `i32 [n]` of the device. */
export function indices(values: ArrayLike<number>): tf.Tensor1D {
  return tf.tensor1d(Int32Array.from(values), 'int32');
}

/** Most elements of a temporary. */
const most = 2 ** 24;

/** Rows of a piece whose temporaries have `width` elements a row. */
export function pieceOf(width: number): number {
  return Math.max(1, Math.floor(most / Math.max(1, width)));
}

/** f32 `[..., depth]`: 1 where the index says, nowhere for -1. */
export function indicator(index: tf.Tensor, depth: number): tf.Tensor {
  const each = tf.range(0, depth, 1, 'int32');
  // No cast: on WebGPU that leaves integers under the name of floats, which
  // a transposition does not expect.
  return tf.where(tf.equal(tf.expandDims(index, -1), each), 1, 0);
}

/** The sum over the first axis; 0 without rows, where WebAssembly gives any. */
export function sumRows(x: tf.Tensor): tf.Tensor {
  return x.shape[0] === 0 ? tf.zeros(x.shape.slice(1)) : tf.sum(x, 0);
}

/**
 * `sum of dy[i] over rows[i] = r`, `dy [M, W]` to `[extent, W]`: a product with
 * the rows' indicators, whose order of summation is always the same.
 */
export function sumByRow(
  dy: tf.Tensor2D,
  rows: tf.Tensor1D,
  extent: number,
): tf.Tensor2D {
  const [count, width] = dy.shape;
  const step = pieceOf(extent);
  let sum: tf.Tensor2D = tf.zeros([extent, width]);
  for (let from = 0; from < count; from += step) {
    const size = Math.min(step, count - from);
    const hits = indicator(tf.slice(rows, from, size), extent);
    const piece = tf.slice(dy, [from, 0], [size, width]);
    sum = tf.add(sum, tf.matMul(hits as tf.Tensor2D, piece, true, false));
  }
  return sum;
}

/** A part of a flattened axis, from row `start` on. */
export interface Piece {
  readonly start: number;
  readonly rows: tf.Tensor;
}

/**
 * Pieces in their places on an axis of `count` rows; rows of no piece hold
 * `rest`. `shape` is that of one row.
 */
export function assemble(
  pieces: readonly Piece[],
  count: number,
  shape: readonly number[],
  rest: (shape: number[]) => tf.Tensor,
): tf.Tensor {
  const parts: tf.Tensor[] = [];
  let at = 0;
  const fillTo = (row: number) => {
    if (row > at) parts.push(rest([row - at, ...shape]));
  };
  for (const { start, rows } of pieces.toSorted((a, b) => a.start - b.start)) {
    const size = rows.shape[0] ?? 0;
    if (size === 0) continue;
    fillTo(start);
    parts.push(rows);
    at = start + size;
  }
  fillTo(count);
  return parts.length === 1 && parts[0]
    ? parts[0]
    : parts.length > 0
      ? tf.concat(parts, 0)
      : tf.zeros([0, ...shape]);
}

export const zeroRows = (shape: number[]) => tf.zeros(shape);
