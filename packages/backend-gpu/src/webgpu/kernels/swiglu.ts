import { input, output, u32 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  sigmoid,
} from './context';

export const swigluKernels = (
  context: KernelContext,
): Kernels<'swiglu' | 'swigluBackward'> => ({
  /** y = gate sigmoid(gate) up */
  swiglu({ gate, up }, { y }) {
    context.run({
      kernel: 'swiglu',
      constants: {},
      bindings: { gate: input(gate), up: up && input(up), y: output(y) },
      uniforms: { count: u32(y.size) },
      ...elementwise(
        y.size,
        () => `let x = f32(gate[i]);
y[i] = t_y(x * sigmoid(x)${up ? ' * f32(up[i])' : ''});`,
        () => sigmoid,
      ),
    });
  },

  /** dGate = dy up s (1 + gate (1 - s)), dUp = dy gate s, s = sigmoid(gate) */
  swigluBackward({ gate, up, dy }, { dGate, dUp }) {
    context.run({
      kernel: 'swigluBackward',
      constants: {},
      bindings: {
        gate: input(gate),
        up: up && input(up),
        dy: input(dy),
        dGate: output(dGate),
        dUp: dUp && output(dUp),
      },
      uniforms: { count: u32(dy.size) },
      ...elementwise(
        dy.size,
        () => `let x = f32(gate[i]);
let d = f32(dy[i]);
let s = sigmoid(x);
dGate[i] = t_dGate(d${up ? ' * f32(up[i])' : ''} * s * (1.0 + x * (1.0 - s)));
${dUp ? 'dUp[i] = t_dUp(d * x * s);' : ''}`,
        () => sigmoid,
      ),
    });
  },
});
