import { i64 } from '../launch';
import { elementwise, type KernelContext, type Kernels } from './context';

export const castKernels = (context: KernelContext): Kernels<'cast'> => ({
  cast({ x }, { y }) {
    context.run({
      file: 'cast',
      entry: 'cast',
      defines: { X: x.dtype, Y: y.dtype },
      ...elementwise(y.size),
      arguments: [x, y, i64(y.size)],
    });
  },
});
