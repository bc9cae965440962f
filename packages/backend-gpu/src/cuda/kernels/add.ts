import type { Tensor } from '@asa/core';
import { i64 } from '../launch';
import { type KernelContext, type Kernels, piecewise, typed } from './context';

export const addKernels = (context: KernelContext): Kernels<'add'> => ({
  add({ a, b }, { y }) {
    addInto(context, a, b, y);
  },
});

/** y = a + b, which may be one of the two */
export function addInto(
  context: KernelContext,
  a: Tensor,
  b: Tensor,
  y: Tensor,
): void {
  context.run({
    file: 'add',
    entry: 'add',
    defines: typed(y),
    ...piecewise(y.size),
    arguments: [a, b, y, i64(y.size)],
  });
}
