import { i32 } from '../launch';
import { extent, type KernelContext, type Kernels, typed } from './context';

const THREADS = 256;

export const sampleKernels = (context: KernelContext): Kernels<'sample'> => ({
  sample({ logits, settings }, { tokens, chosen }, { width }) {
    context.run({
      file: 'sample',
      entry: 'sample',
      defines: typed(logits),
      grid: [extent(logits, 0)],
      threads: [THREADS],
      arguments: [
        logits,
        settings,
        tokens,
        chosen,
        i32(extent(logits, 1)),
        i32(width),
      ],
    });
  },
});
