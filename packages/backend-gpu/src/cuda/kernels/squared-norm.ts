import { i32, i64 } from '../launch';
import { type KernelContext, type Kernels, PIECE, typed } from './context';

const THREADS = 256;
const MOST_PARTS = 1024;
/** Pieces of a thread where one block is enough: a launch takes as long. */
const FEW = 4;

export const squaredNormKernels = (
  context: KernelContext,
): Kernels<'squaredNorm'> => ({
  /** Some sums side by side, then their sum. */
  squaredNorm({ x, total }) {
    const pieces = Math.ceil(x.size / (PIECE * THREADS));
    if (pieces === 0) return;
    const parts = pieces <= FEW ? 1 : Math.min(MOST_PARTS, pieces);
    const partial = parts > 1 ? context.scratch(parts, 'f32') : total;
    const common = {
      file: 'squared-norm',
      defines: typed(x),
      threads: [THREADS],
    } as const;
    context.run({
      ...common,
      entry: 'squaredNorm',
      grid: [parts],
      arguments: [x, partial, i64(x.size)],
    });
    if (parts === 1) return;
    context.run({
      ...common,
      entry: 'squaredNormTotal',
      grid: [1],
      arguments: [partial, total, i32(parts)],
    });
    partial.free();
  },
});
