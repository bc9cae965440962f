import { i32, i64 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  threadsFor,
  typed,
} from './context';

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
      threads: [threadsFor(vocabulary)],
      arguments: [logits, targets, loss, lse, i32(vocabulary)],
    });
  },

  crossEntropyBackward({ logits, targets, lse, dLoss }, { dLogits }) {
    context.run({
      file: 'cross-entropy',
      entry: 'crossEntropyBackward',
      defines: typed(logits),
      ...elementwise(logits.size),
      arguments: [
        logits,
        targets,
        lse,
        dLoss,
        dLogits,
        i64(logits.size),
        i32(extent(logits, 1)),
      ],
    });
  },
});
