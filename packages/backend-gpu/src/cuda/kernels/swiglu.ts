import { i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

export const swigluKernels = (
  context: KernelContext,
): Kernels<'swiglu' | 'swigluBackward'> => ({
  swiglu({ gate, up }, { y }) {
    context.run({
      file: 'swiglu',
      entry: 'swiglu',
      defines: typed(y),
      ...elementwise(y.size),
      arguments: [gate, up, y, i64(y.size)],
    });
  },

  swigluBackward({ gate, up, dy }, { dGate, dUp }) {
    context.run({
      file: 'swiglu',
      entry: 'swigluBackward',
      defines: typed(dy),
      ...elementwise(dy.size),
      arguments: [gate, up, dy, dGate, dUp, i64(dy.size)],
    });
  },
});
