import type { Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import { type KernelContext, typed } from './context';

/** Rows and columns that a block sums, as in the kernel. */
const ROWS = 256;
const COLUMNS = 32;
const WARPS = 8;

/**
 * `y[c] = sum over n of x[n, c]`, `x [rows, columns]` f32, `y [columns]`: first
 * sums of some rows each, then their sum, in the order of the rows.
 */
export function columnSum(
  context: KernelContext,
  x: Tensor,
  rows: number,
  columns: number,
  y: Tensor,
): void {
  const parts = Math.ceil(rows / ROWS);
  const sum = (to: Tensor) =>
    context.run({
      file: 'column-sum',
      entry: 'columnSum',
      defines: typed(to),
      grid: [parts, Math.ceil(columns / COLUMNS)],
      threads: [COLUMNS * WARPS],
      arguments: [x, to, i64(rows), i32(columns)],
    });
  if (parts === 0) {
    context.clear(y);
  } else if (parts === 1) {
    sum(y);
  } else {
    const partial = context.scratch(parts * columns, 'f32');
    sum(partial);
    columnSum(context, partial, parts, columns, y);
    partial.free();
  }
}
