import { f32, i32, i64 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  PIECE,
  typed,
} from './context';

/** Heads that share a thread's angles; as in the kernel. */
const HEADS = 4;

export const ropeKernels = (context: KernelContext): Kernels<'rope'> => ({
  rope({ x, positions, frequencies }, { y }, { style, inverse = false }) {
    const [tokens, heads] = [extent(x, 0), extent(x, 1)];
    const pairs = extent(x, 2) / 2;
    const [step, apart] = style === 'half' ? [1, pairs] : [2, 1];
    const isWhole = pairs % PIECE === 0;
    const threads = isWhole
      ? tokens * Math.ceil(heads / HEADS) * (pairs / PIECE)
      : y.size / 2;
    context.run({
      file: 'rope',
      entry: isWhole ? 'ropePieces' : 'rope',
      defines: typed(x),
      ...elementwise(threads),
      arguments: [
        x,
        positions,
        frequencies,
        y,
        i64(threads),
        ...[heads, pairs, step].map(i32),
        ...(isWhole ? [] : [i32(apart)]),
        f32(inverse ? -1 : 1),
      ],
    });
  },
});
