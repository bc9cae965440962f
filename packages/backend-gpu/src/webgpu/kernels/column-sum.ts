import type { Tensor } from '@asa/core';
import { input, output, u32 } from '../launch';
import type { KernelContext } from './context';

const ROWS = 256;
const COLUMNS = 64;

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
  const sum = (from: Tensor, to: Tensor, count: number, groups: number) =>
    context.run({
      kernel: 'columnSum',
      constants: {},
      bindings: { x: input(from), y: output(to) },
      uniforms: { rows: u32(count), columns: u32(columns) },
      grid: [Math.ceil(columns / COLUMNS), groups],
      source: () => ({
        threads: COLUMNS,
        body: `let c = group.x * ${COLUMNS}u + tid;
if (c >= u.columns) { return; }
let first = group.y * ${ROWS}u;
let end = min(first + ${ROWS}u, u.rows);
var sum = 0.0;
for (var n = first; n < end; n++) { sum += f32(x[n * u.columns + c]); }
y[group.y * u.columns + c] = t_y(sum);`,
      }),
    });
  if (parts === 0) {
    context.clear(y);
  } else if (parts === 1) {
    sum(x, y, rows, 1);
  } else {
    const partial = context.scratch(parts * columns, 'f32');
    sum(x, partial, rows, parts);
    columnSum(context, partial, parts, columns, y);
    partial.free();
  }
}
