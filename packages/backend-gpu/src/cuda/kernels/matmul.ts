import type { Tensor } from '@asa/core';
import type { Product } from '../products';
import { addInto } from './add';
import { extent, type KernelContext, type Kernels } from './context';

/** Products add what they are given, in place of a launch of `add` behind them. */
const ADDS_ON_THE_WAY = true;

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
  if (inner > 0 && (!plus || ADDS_ON_THE_WAY)) {
    context.product(product);
    return;
  }
  const { plus: _, ...alone } = product;
  if (inner === 0) context.clear(tensor);
  else context.product(alone);
  if (plus) addInto(context, tensor, plus, tensor);
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
