import type { Tensor } from '@asa/core';
import type { Product } from '../products';
import { addInto } from './add';
import { extent, type KernelContext, type Kernels } from './context';

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] where there is one */
  matmul({ a, b, plus }, { y }, { transposeA = false, transposeB = false }) {
    const aColumns = extent(a, -1);
    const aRows = rowsOf(a);
    const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = extent(b, transposeB ? 0 : 1);
    multiply(context, {
      a: { tensor: a, pitch: aColumns, isTransposed: transposeA },
      b: { tensor: b, pitch: extent(b, 1), isTransposed: transposeB },
      y: { tensor: y, pitch: columns },
      plus,
      rows,
      columns,
      inner,
    });
  },
});

/** A product into all of `y`; `plus` or zeros where it has no terms. */
export function multiply(context: KernelContext, product: Product): void {
  const { y, plus, inner } = product;
  const { tensor } = y;
  if (tensor.size === 0) return;
  if (inner > 0) {
    context.product(product);
    return;
  }
  context.clear(tensor);
  if (plus) addInto(context, tensor, plus, tensor);
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
