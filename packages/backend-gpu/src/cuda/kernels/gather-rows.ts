import { bytesPerElement, type Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

const THREADS = 256;

export const gatherRowsKernels = (
  context: KernelContext,
): Kernels<'gatherRows' | 'gatherRowsBackward' | 'scatterRows'> => ({
  gatherRows({ x, rows }, { y }) {
    context.run({
      file: 'rows',
      entry: 'gatherRows',
      defines: bitsOf(y),
      ...elementwise(y.size),
      arguments: [x, rows, y, i64(y.size), i64(rowWidth(y))],
    });
  },

  scatterRows({ target, x, rows }) {
    context.run({
      file: 'rows',
      entry: 'scatterRows',
      defines: bitsOf(x),
      ...elementwise(x.size),
      arguments: [x, rows, target, i64(x.size), i64(rowWidth(x))],
    });
  },

  gatherRowsBackward({ dy, rows }, { dx }, { extent }) {
    if (dx.size === 0) return;
    context.run({
      file: 'gather-rows-backward',
      entry: 'gatherRowsBackward',
      defines: typed(dx),
      grid: [extent],
      threads: [THREADS],
      arguments: [dy, rows, dx, i32(rows.size), i64(dx.size / extent)],
    });
  },
});

/** Rows are moved, not computed with: only the size of elements matters. */
const bitsOf = ({ dtype }: Tensor) => ({
  T: bytesPerElement[dtype] === 2 ? 'bits16' : 'bits32',
});

function rowWidth({ shape, size }: Tensor): number {
  return size / Math.max(1, shape[0] ?? 1);
}
