import { i64 } from '../launch';
import { type KernelContext, type Kernels, piecewise } from './context';

export const castKernels = (context: KernelContext): Kernels<'cast'> => ({
  cast({ x }, { y }) {
    context.run({
      file: 'cast',
      entry: 'cast',
      defines: { X: x.dtype, Y: y.dtype },
      ...piecewise(y.size),
      arguments: [x, y, i64(y.size)],
    });
  },
});
