import { bytesPerElement, type Tensor } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { f32, i32, i64 } from '../launch';
import { greatestCommonDivisor } from './attention-tile';
import { columnSum } from './column-sum';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  lanesOf,
  PIECE,
  threadsFor,
  typed,
} from './context';

/** As in the kernel. */
const THREADS = 256;
/** Bytes of a row that a lane keeps at most; a gradient keeps two, and sums. */
const MOST_HELD = 512;
const MOST_HELD_BACKWARD = 128;
/** Rows of a decoding step, whose lanes keep their weights too. */
const FEW_ROWS = 64;
/** Threads of a multiprocessor that sum terms, and rows that each sums at least. */
const SUMMING = 512;
const SUMMED_ROWS = 8;

export const rmsNormKernels = (
  context: KernelContext,
): Kernels<'rmsNorm' | 'rmsNormBackward'> => ({
  rmsNorm({ x, weight }, { y }, { eps }) {
    const width = extent(x, -1);
    const rows = x.size / width;
    const numbers = [i32(width), i32(weight.size / width), f32(eps)];
    const cut = cutOf(x, MOST_HELD);
    const isFew =
      rows <= FEW_ROWS && cutOf(x, MOST_HELD_BACKWARD) !== undefined;
    context.run({
      file: 'rms-norm',
      ...(cut
        ? {
            entry: 'rmsNormHeld',
            defines: { ...typed(x), ...cut, FEW: isFew ? 1 : 0 },
            ...elementwise(rows * cut.LANES),
            arguments: [x, weight, y, i64(rows), ...numbers],
          }
        : {
            entry: 'rmsNorm',
            defines: typed(x),
            ...blockARow(rows, width),
            arguments: [x, weight, y, ...numbers],
          }),
    });
  },

  rmsNormBackward({ x, weight, dy, plus }, { dx, dWeight }, { eps }) {
    const width = extent(x, -1);
    const rows = x.size / width;
    const norms = weight.size / width;
    const numbers = [i32(width), i32(norms), f32(eps)];
    const cut = cutOf(x, MOST_HELD_BACKWARD);
    const parts = cut ? partsOf(rows, norms, cut.LANES, context.facts) : rows;
    const terms = context.scratch(parts * width, 'f32');
    const tensors = [x, weight, dy, plus, dx, terms];
    const PLUS = plus ? 1 : 0;
    context.run({
      file: 'rms-norm',
      ...(cut
        ? {
            entry: 'rmsNormBackwardHeld',
            defines: { ...typed(x), ...cut, PLUS },
            ...elementwise(parts * cut.LANES),
            arguments: [...tensors, i64(rows), ...numbers, i32(parts)],
          }
        : {
            entry: 'rmsNormBackward',
            defines: { ...typed(x), PLUS },
            ...blockARow(rows, width),
            arguments: [...tensors, ...numbers],
          }),
    });
    columnSum(context, terms, parts / norms, weight.size, dWeight);
    terms.free();
  },
});

const blockARow = (rows: number, width: number) => ({
  grid: [rows] as const,
  threads: [threadsFor(width)] as const,
});

/** Lanes that share a row, and pieces of each; none for a block a row. */
function cutOf(
  x: Tensor,
  mostBytes: number,
): { LANES: number; HELD: number } | undefined {
  const width = extent(x, -1);
  const LANES = lanesOf(width);
  const HELD = Math.ceil(width / (PIECE * LANES));
  const bytes = HELD * PIECE * bytesPerElement[x.dtype];
  if (width % PIECE !== 0 || bytes > mostBytes) return undefined;
  return { LANES, HELD };
}

/**
 * Rows that are summed side by side: whole blocks of threads, and as many of
 * each norm.
 */
function partsOf(
  rows: number,
  norms: number,
  lanes: number,
  { multiprocessors }: DeviceFacts,
): number {
  const block = THREADS / lanes;
  const unit = (block / greatestCommonDivisor(block, norms)) * norms;
  const most = (SUMMING * multiprocessors) / lanes;
  const wanted = Math.min(rows / SUMMED_ROWS, most);
  return unit * Math.max(1, Math.ceil(wanted / unit));
}
