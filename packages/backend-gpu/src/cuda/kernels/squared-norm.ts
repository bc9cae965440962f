import { i32, i64 } from '../launch';
import { type KernelContext, type Kernels, PIECE, typed } from './context';

const THREADS = 256;
const MOST_PARTS = 1024;

export const squaredNormKernels = (
  context: KernelContext,
): Kernels<'squaredNorm'> => ({
  /** Some sums side by side, then their sum. */
  squaredNorm({ x, total }) {
    const parts = Math.min(MOST_PARTS, Math.ceil(x.size / (PIECE * THREADS)));
    if (parts === 0) return;
    const partial = context.scratch(parts, 'f32');
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
    context.run({
      ...common,
      entry: 'squaredNormTotal',
      grid: [1],
      arguments: [partial, total, i32(parts)],
    });
    partial.free();
  },
});
