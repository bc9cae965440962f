import { i64 } from '../launch';
import { type KernelContext, type Kernels, piecewise, typed } from './context';

export const swigluKernels = (
  context: KernelContext,
): Kernels<'swiglu' | 'swigluBackward'> => ({
  swiglu({ gate, up }, { y }) {
    context.run({
      file: 'swiglu',
      entry: 'swiglu',
      defines: typed(y),
      ...piecewise(y.size),
      arguments: [gate, up, y, i64(y.size)],
    });
  },

  swigluBackward({ gate, up, dy }, { dGate, dUp }) {
    context.run({
      file: 'swiglu',
      entry: 'swigluBackward',
      defines: typed(dy),
      ...piecewise(dy.size),
      arguments: [gate, up, dy, dGate, dUp, i64(dy.size)],
    });
  },
});
