import type { Tensor } from '@asa/core';
import { i32 } from '../launch';
import { extent, type KernelContext, type Kernels, typed } from './context';
import { multiply } from './matmul';

/**
 * Heads that share a group are rows of one matrix `[share M, K]`, so each is
 * one product a group. Weights that are stored transposed, `[H, K, M]`, are so
 * only where every head has a group of its own; elsewhere they are turned over
 * first.
 */
export const headMatmulKernels = (
  context: KernelContext,
): Kernels<
  'headMatmul' | 'headMatmulBackwardInput' | 'headMatmulBackwardWeight'
> => ({
  /** y[n, i] = W[i] x[n, g(i)] */
  headMatmul({ x, w }, { y }, { transposeWeight = false }) {
    const [rows, groups, inner] = [extent(x, 0), extent(x, 1), extent(x, 2)];
    const columns = (extent(y, 1) / groups) * extent(y, 2);
    withRows(context, w, transposeWeight, groups, (weights, isTransposed) =>
      multiply(context, {
        a: { tensor: x, pitch: groups * inner, batchStride: inner },
        b: {
          tensor: weights,
          pitch: isTransposed ? columns : inner,
          batchStride: columns * inner,
          isTransposed: !isTransposed,
        },
        y: { tensor: y, pitch: groups * columns, batchStride: columns },
        rows,
        columns,
        inner,
        batches: groups,
      }),
    );
  },

  /** dx[n, g] = sum over heads i of g of W[i]^T dy[n, i] */
  headMatmulBackwardInput({ dy, w }, { dx }, { transposeWeight = false }) {
    const [rows, groups, width] = [extent(dx, 0), extent(dx, 1), extent(dx, 2)];
    const inner = (extent(dy, 1) / groups) * extent(dy, 2);
    withRows(context, w, transposeWeight, groups, (weights, isTransposed) =>
      multiply(context, {
        a: { tensor: dy, pitch: groups * inner, batchStride: inner },
        b: {
          tensor: weights,
          pitch: isTransposed ? inner : width,
          batchStride: inner * width,
          isTransposed,
        },
        y: { tensor: dx, pitch: groups * width, batchStride: width },
        rows,
        columns: width,
        inner,
        batches: groups,
      }),
    );
  },

  /** dW[i] = sum over n of dy[n, i] x[n, g(i)]^T */
  headMatmulBackwardWeight({ x, dy }, { dw }, { transposeWeight = false }) {
    const [inner, groups, width] = [extent(x, 0), extent(x, 1), extent(x, 2)];
    const heads = extent(dy, 1);
    const share = (heads / groups) * extent(dy, 2);
    const ofHeads = {
      tensor: dy,
      pitch: groups * share,
      batchStride: share,
    };
    const ofGroups = { tensor: x, pitch: groups * width, batchStride: width };
    const common = { inner, batches: groups };
    if (transposeWeight && heads === groups) {
      multiply(context, {
        ...common,
        a: { ...ofGroups, isTransposed: true },
        b: ofHeads,
        y: { tensor: dw, pitch: share, batchStride: share * width },
        rows: width,
        columns: share,
      });
      return;
    }
    const rows = transposeWeight ? context.scratch(dw.size, dw.dtype) : dw;
    multiply(context, {
      ...common,
      a: { ...ofHeads, isTransposed: true },
      b: ofGroups,
      y: { tensor: rows, pitch: width, batchStride: share * width },
      rows: share,
      columns: width,
    });
    if (!transposeWeight) return;
    transposeHeads(context, rows, dw, heads, extent(dy, 2), width);
    rows.free();
  },
});

/** Calls `body` with weights whose group's heads are rows of one matrix. */
function withRows(
  context: KernelContext,
  w: Tensor,
  isTransposed: boolean,
  groups: number,
  body: (weights: Tensor, isTransposed: boolean) => void,
): void {
  const heads = extent(w, 0);
  if (!isTransposed || heads === groups) {
    body(w, isTransposed);
    return;
  }
  const rows = context.scratch(w.size, w.dtype);
  transposeHeads(context, w, rows, heads, extent(w, 1), extent(w, 2));
  body(rows, false);
  rows.free();
}

/** `y[h, j, i] = x[h, i, j]`, `x [H, rows, columns]` */
function transposeHeads(
  context: KernelContext,
  x: Tensor,
  y: Tensor,
  heads: number,
  rows: number,
  columns: number,
): void {
  context.run({
    file: 'transpose-heads',
    entry: 'transposeHeads',
    defines: typed(x),
    grid: [Math.ceil(columns / 32), Math.ceil(rows / 32), heads],
    threads: [32, 32],
    arguments: [x, y, i32(rows), i32(columns)],
  });
}
