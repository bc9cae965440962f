import type { Tensor } from '@asa/core';
import type { Product } from '../products';
import { extent, type KernelContext, type Kernels } from './context';

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j] */
  matmul({ a, b }, { y }, { transposeA = false, transposeB = false }) {
    const aColumns = extent(a, -1);
    const aRows = rowsOf(a);
    const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = extent(b, transposeB ? 0 : 1);
    multiply(context, {
      a: { tensor: a, pitch: aColumns, isTransposed: transposeA },
      b: { tensor: b, pitch: extent(b, 1), isTransposed: transposeB },
      y: { tensor: y, pitch: columns },
      rows,
      columns,
      inner,
    });
  },
});

/** A product into all of `y`; zeros where it has no terms. */
export function multiply(context: KernelContext, product: Product): void {
  const { tensor } = product.y;
  if (tensor.size === 0) return;
  if (product.inner === 0) context.clear(tensor);
  else context.product(product);
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
