import type { Tensor } from '@asa/core';
import { extent, type KernelContext, type Kernels } from './context';
import { gemm, type Layout } from './gemm';

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j] */
  matmul({ a, b }, { y }, { transposeA = false, transposeB = false }) {
    const aColumns = extent(a, -1);
    const aRows = aColumns === 0 ? rowsOf(a) : a.size / aColumns;
    const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = extent(b, transposeB ? 0 : 1);
    gemm(context, {
      a,
      b,
      y,
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
