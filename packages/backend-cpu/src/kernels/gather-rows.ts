import { ArgumentError, type Tensor } from '@asa/core';
import { elements, floats, indices, type Kernels } from './operands';

export const gatherRowsKernels: Kernels<'gatherRows'> = {
  /** y[i] = x[rows[i]] */
  gatherRows(inputs, outputs) {
    const x = elements(inputs.x);
    const y = elements(outputs.y);
    const { width, at } = rowsOf('gatherRows', inputs.x, inputs.rows);
    at.forEach((row, i) => {
      y.set(x.subarray(row * width, (row + 1) * width), i * width);
    });
  },
};

export const gatherRowsBackwardKernels: Kernels<'gatherRowsBackward'> = {
  /** dx[r] = sum of dy[i] over rows[i] = r, in the order of i */
  gatherRowsBackward(inputs, outputs) {
    const dy = floats(inputs.dy);
    const dx = floats(outputs.dx);
    const { width, at } = rowsOf('gatherRowsBackward', outputs.dx, inputs.rows);
    const sums = new Float64Array(dx.length);
    at.forEach((row, i) => {
      for (let c = 0; c < width; c++) {
        sums[row * width + c] =
          (sums[row * width + c] as number) + (dy[i * width + c] as number);
      }
    });
    dx.set(sums);
  },
};

/** The width of a table's rows, and the row numbers, all of them inside it. */
export function rowsOf(
  operator: string,
  table: Tensor,
  rows: Tensor,
): { width: number; at: Int32Array } {
  const [extent = 0] = table.shape;
  const at = indices(rows);
  const outside = at.find((row) => row < 0 || row >= extent);
  if (outside !== undefined) {
    throw new ArgumentError(
      `${operator}: rows must be from 0 to ${extent - 1}, got ${outside}`,
    );
  }
  return { width: extent === 0 ? 0 : table.size / extent, at };
}
