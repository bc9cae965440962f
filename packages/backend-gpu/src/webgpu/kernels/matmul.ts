import type { Tensor } from '@asa/core';
import { addInto } from './add';
import { extent, type KernelContext, type Kernels } from './context';
import { gemm, type Layout } from './gemm';

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] where there is one */
  matmul({ a, b, plus }, { y }, { transposeA = false, transposeB = false }) {
    const aColumns = extent(a, -1);
    const aRows = aColumns === 0 ? rowsOf(a) : a.size / aColumns;
    const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = extent(b, transposeB ? 0 : 1);
    // In f32: what is added to is not rounded before.
    const product = plus ? context.scratch(y.size, 'f32') : y;
    gemm(context, {
      a,
      b,
      y: product,
      layouts: {
        a: dense('u.rows', 'u.inner', transposeA, transposeA ? rows : inner),
        b: dense(
          'u.inner',
          'u.columns',
          transposeB,
          transposeB ? inner : columns,
        ),
        y: dense('u.rows', 'u.columns', false, columns),
      },
      batches: 1,
      rows,
      columns,
      inner,
    });
    if (!plus) return;
    addInto(context, product, plus, y);
    product.free();
  },
});

/** A matrix that fills a tensor, stored as such or transposed. */
function dense(
  rows: string,
  columns: string,
  isTransposed: boolean,
  pitch: number,
): Layout {
  const aligned = pitch % 4 === 0;
  return isTransposed
    ? {
        name: `transposed${aligned}`,
        index: `column * ${rows} + row`,
        contiguous: 'column',
        aligned,
      }
    : {
        name: `dense${aligned}`,
        index: `row * ${columns} + column`,
        contiguous: 'row',
        aligned,
      };
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
