import { input, output, u32 } from '../launch';
import { elementwise, type KernelContext, type Kernels } from './context';

export const castKernels = (context: KernelContext): Kernels<'cast'> => ({
  /** y = x in another type */
  cast({ x }, { y }) {
    context.run({
      kernel: 'cast',
      constants: {},
      bindings: { x: input(x), y: output(y) },
      uniforms: { count: u32(y.size) },
      ...elementwise(y.size, () => 'y[i] = t_y(x[i]);'),
    });
  },
});
