import type { Tensor } from '@asa/core';
import { memoryOf } from '../memory';
import { extent, type KernelContext, type Kernels } from './context';

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j] */
  matmul({ a, b }, { y }, { transposeA = false, transposeB = false }) {
    const aColumns = extent(a, -1);
    const aRows = rowsOf(a);
    const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = extent(b, transposeB ? 0 : 1);
    multiply(context, y, {
      a: { ...matrix(a), pitch: aColumns, isTransposed: transposeA },
      b: { ...matrix(b), pitch: extent(b, 1), isTransposed: transposeB },
      y: { ...matrix(y), pitch: columns },
      rows,
      columns,
      inner,
    });
  },
});

/** A tensor's memory as the start of a matrix. */
export const matrix = ({ storage }: Tensor) => ({
  pointer: memoryOf(storage).pointer,
});

/** A product into all of `y`; zeros where it has no terms. */
export function multiply(
  context: KernelContext,
  y: Tensor,
  product: Omit<Parameters<KernelContext['product']>[0], 'dtype'>,
): void {
  if (y.size === 0) return;
  if (product.inner === 0) context.clear(y);
  else context.product({ ...product, dtype: y.dtype });
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
