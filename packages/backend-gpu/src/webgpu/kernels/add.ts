import type { Tensor } from '@asa/core';
import { input, output, u32 } from '../launch';
import { elementwise, type KernelContext, type Kernels } from './context';

export const addKernels = (context: KernelContext): Kernels<'add'> => ({
  add({ a, b }, { y }) {
    addInto(context, a, b, y);
  },
});

/** y = a + b */
export function addInto(
  context: KernelContext,
  a: Tensor,
  b: Tensor,
  y: Tensor,
): void {
  context.run({
    kernel: 'add',
    constants: {},
    bindings: { a: input(a), b: input(b), y: output(y) },
    uniforms: { count: u32(y.size) },
    ...elementwise(y.size, () => 'y[i] = t_y(f32(a[i]) + f32(b[i]));'),
  });
}
