import { program } from '../program';
import type { KernelContext, Kernels } from './context';

/** `s = sigmoid(x)`, of which no part overflows. */
export const sigmoid = `const e = Math.exp(-Math.abs(x));
  let s = e / (1 + e);
  if (x >= 0) { s = 1 / (1 + e); }`;

const silu = program(
  'silu',
  { arrays: ['gate'] },
  `const x = gate[this.thread.x];
  ${sigmoid}
  return x * s;`,
);

const swiglu = program(
  'swiglu',
  { arrays: ['gate', 'up'] },
  `const x = gate[this.thread.x];
  ${sigmoid}
  return x * s * up[this.thread.x];`,
);

const siluBackward = program(
  'siluBackward',
  { arrays: ['gate', 'dy'] },
  `const x = gate[this.thread.x];
  ${sigmoid}
  return dy[this.thread.x] * s * (1 + x * (1 - s));`,
);

const gateGradient = program(
  'swigluBackwardGate',
  { arrays: ['gate', 'up', 'dy'] },
  `const x = gate[this.thread.x];
  ${sigmoid}
  return dy[this.thread.x] * up[this.thread.x] * s * (1 + x * (1 - s));`,
);

export const swigluKernels = (
  context: KernelContext,
): Kernels<'swiglu' | 'swigluBackward'> => ({
  /** y = gate sigmoid(gate) up */
  swiglu({ gate, up }, { y }) {
    if (up) context.run(swiglu, { gate, up }, y, [y.size]);
    else context.run(silu, { gate }, y, [y.size]);
  },

  /**
   * dGate = dy up s (1 + gate (1 - s)), s = sigmoid(gate)
   * dUp = dy gate s
   */
  swigluBackward({ gate, up, dy }, { dGate, dUp }) {
    const threads = [dy.size] as const;
    if (up) context.run(gateGradient, { gate, up, dy }, dGate, threads);
    else context.run(siluBackward, { gate, dy }, dGate, threads);
    if (dUp) context.run(swiglu, { gate, up: dy }, dUp, threads);
  },
});
