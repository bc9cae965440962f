import { i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

export const addKernels = (context: KernelContext): Kernels<'add'> => ({
  add({ a, b }, { y }) {
    context.run({
      file: 'add',
      entry: 'add',
      defines: typed(y),
      ...elementwise(y.size),
      arguments: [a, b, y, i64(y.size)],
    });
  },
});
