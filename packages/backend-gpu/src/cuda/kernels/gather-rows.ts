import { bytesPerElement, type Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

/** As in the kernel. */
const THREADS = 128;
const STRETCH = 1024;

export const gatherRowsKernels = (
  context: KernelContext,
): Kernels<'gatherRows' | 'gatherRowsBackward' | 'scatterRows'> => ({
  gatherRows({ x, rows }, { y }) {
    context.run({
      file: 'rows',
      entry: 'gatherRows',
      ...moved(y),
      arguments: [x, rows, y, ...piecesOf(y)],
    });
  },

  scatterRows({ target, x, rows }) {
    context.run({
      file: 'rows',
      entry: 'scatterRows',
      ...moved(x),
      arguments: [x, rows, target, ...piecesOf(x)],
    });
  },

  gatherRowsBackward({ dy, rows }, { dx }, { extent }) {
    if (dx.size === 0) return;
    const words = Math.max(1, Math.ceil(rows.size / (32 * STRETCH)));
    const marks = context.scratch(extent * words, 'i32');
    context.clear(marks);
    const common = {
      file: 'gather-rows-backward',
      defines: typed(dx),
    } as const;
    context.run({
      ...common,
      entry: 'markRows',
      ...elementwise(rows.size),
      arguments: [rows, marks, i32(rows.size), i32(words)],
    });
    context.run({
      ...common,
      entry: 'gatherRowsBackward',
      grid: [extent],
      threads: [THREADS],
      arguments: [
        dy,
        rows,
        marks,
        dx,
        i32(rows.size),
        i64(dx.size / extent),
        i32(words),
      ],
    });
    marks.free();
  },
});

/**
 * Rows are moved, not computed with: only the size of elements matters, 16 bytes
 * where rows are multiples of that.
 */
function elementsOf(tensor: Tensor): { bits: number; elements: number } {
  const bits = 8 * bytesPerElement[tensor.dtype];
  const each = 128 / bits;
  const isWhole = rowWidth(tensor) % each === 0;
  return { bits: isWhole ? 128 : bits, elements: isWhole ? each : 1 };
}

function moved(tensor: Tensor) {
  const { bits, elements } = elementsOf(tensor);
  return {
    defines: { T: `bits${bits}` },
    ...elementwise(tensor.size / elements),
  };
}

/** How many there are, and of a row. */
function piecesOf(tensor: Tensor) {
  const { elements } = elementsOf(tensor);
  const { size } = tensor;
  return [i64(size / elements), i64(rowWidth(tensor) / elements)] as const;
}

function rowWidth({ shape, size }: Tensor): number {
  return size / Math.max(1, shape[0] ?? 1);
}
