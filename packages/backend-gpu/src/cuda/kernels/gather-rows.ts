import { bytesPerElement, type Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  type ManyKernels,
  THREADS,
  typed,
} from './context';
import { launchesOf, padded } from './many';

/** Tensors of a launch. */
const MOST = 4;
/** As in the kernel of the gradient. */
const GRADIENT_THREADS = 128;
const STRETCH = 1024;

/** Rows of `x` that go to `y`, `rows` being of one of them. */
interface Move {
  readonly x: Tensor;
  readonly rows: Tensor;
  readonly y: Tensor;
  /** The one of them that all elements are of. */
  readonly moved: Tensor;
}

export const rowsMany = (
  context: KernelContext,
): ManyKernels<'gatherRows' | 'scatterRows'> => ({
  gatherRows(calls) {
    const moves = calls.map(({ inputs, outputs: { y } }) => ({
      ...inputs,
      y,
      moved: y,
    }));
    moveRows(context, 'gatherRows', moves);
  },

  scatterRows(calls) {
    const moves = calls.map(({ inputs }) => ({
      ...inputs,
      y: inputs.target,
      moved: inputs.x,
    }));
    moveRows(context, 'scatterRows', moves);
  },
});

export const gatherRowsKernels = (
  context: KernelContext,
): Kernels<'gatherRows' | 'gatherRowsBackward' | 'scatterRows'> => ({
  gatherRows(inputs, outputs, attributes) {
    rowsMany(context).gatherRows([{ inputs, outputs, attributes }]);
  },

  scatterRows(inputs, outputs, attributes) {
    rowsMany(context).scatterRows([{ inputs, outputs, attributes }]);
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
      threads: [GRADIENT_THREADS],
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

const none = [undefined, undefined, undefined, i64(0), i64(0), i64(0)];

function moveRows(
  context: KernelContext,
  entry: 'gatherRows' | 'scatterRows',
  moves: readonly Move[],
): void {
  const launches = launchesOf(
    moves,
    (a, b) => elementsOf(a).bits === elementsOf(b).bits,
    (move) => elementsOf(move).count,
    { each: THREADS, most: MOST },
  );
  for (const { first, parts, blocks } of launches) {
    const tensors = parts.map(({ call, start }) => {
      const { count, width } = elementsOf(call);
      return [call.x, call.rows, call.y, ...[count, width, start].map(i64)];
    });
    context.run({
      file: 'rows',
      entry,
      defines: { T: `bits${elementsOf(first).bits}`, MOST },
      grid: [blocks],
      threads: [THREADS],
      arguments: [...padded(tensors, none, MOST), i32(parts.length)],
    });
  }
}

/**
 * Rows are moved, not computed with: only the size of elements matters, 16 bytes
 * where rows are multiples of that. How many there are, and of a row.
 */
function elementsOf({ moved: { dtype, shape, size } }: Move) {
  const bits = 8 * bytesPerElement[dtype];
  const each = 128 / bits;
  const width = size / Math.max(1, shape[0] ?? 1);
  return width % each === 0
    ? { bits: 128, count: size / each, width: width / each }
    : { bits, count: size, width };
}
