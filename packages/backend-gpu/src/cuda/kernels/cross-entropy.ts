import { i32 } from '../launch';
import {
  extent,
  type KernelContext,
  type Kernels,
  PIECE,
  typed,
} from './context';

/** As in the kernel. */
const THREADS = 256;

export const crossEntropyKernels = (
  context: KernelContext,
): Kernels<'crossEntropy' | 'crossEntropyBackward'> => ({
  crossEntropy({ logits, targets }, { loss, lse }) {
    const vocabulary = extent(logits, 1);
    context.run({
      file: 'cross-entropy',
      entry: 'crossEntropy',
      defines: typed(logits),
      grid: [extent(logits, 0)],
      threads: [THREADS],
      arguments: [logits, targets, loss, lse, i32(vocabulary)],
    });
  },

  crossEntropyBackward({ logits, targets, lse, dLoss }, { dLogits }) {
    const vocabulary = extent(logits, 1);
    const blocks = Math.ceil(vocabulary / (THREADS * PIECE));
    context.run({
      file: 'cross-entropy',
      entry: 'crossEntropyBackward',
      defines: typed(logits),
      grid: [extent(logits, 0) * blocks],
      threads: [THREADS],
      arguments: [
        logits,
        targets,
        lse,
        dLoss,
        dLogits,
        i32(vocabulary),
        i32(blocks),
      ],
    });
  },
});
