import { i64 } from '../launch';
import { type KernelContext, type Kernels, piecewise, typed } from './context';

export const addKernels = (context: KernelContext): Kernels<'add'> => ({
  add({ a, b }, { y }) {
    context.run({
      file: 'add',
      entry: 'add',
      defines: typed(y),
      ...piecewise(y.size),
      arguments: [a, b, y, i64(y.size)],
    });
  },
});
