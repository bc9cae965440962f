import { program } from '../program';
import type { KernelContext, Kernels } from './context';

export const add = program(
  'add',
  { arrays: ['a', 'b'] },
  'return a[this.thread.x] + b[this.thread.x];',
);

export const addKernels = (context: KernelContext): Kernels<'add'> => ({
  /** y = a + b */
  add({ a, b }, { y }) {
    context.run(add, { a, b }, y, [y.size]);
  },
});
