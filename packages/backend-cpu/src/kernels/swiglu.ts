import { floats, type Kernels } from './operands';

export const swigluKernels: Kernels<'swiglu' | 'swigluBackward'> = {
  /** y = gate sigmoid(gate) up */
  swiglu(inputs, outputs) {
    const gate = floats(inputs.gate);
    const up = inputs.up && floats(inputs.up);
    const y = floats(outputs.y);
    for (let i = 0; i < y.length; i++) {
      const x = gate[i] as number;
      y[i] = x * sigmoid(x) * (up ? (up[i] as number) : 1);
    }
  },

  /**
   * dGate = dy up s (1 + gate (1 - s)), s = sigmoid(gate)
   * dUp = dy gate s
   */
  swigluBackward(inputs, outputs) {
    const gate = floats(inputs.gate);
    const up = inputs.up && floats(inputs.up);
    const dy = floats(inputs.dy);
    const dGate = floats(outputs.dGate);
    const dUp = outputs.dUp && floats(outputs.dUp);
    for (let i = 0; i < dy.length; i++) {
      const x = gate[i] as number;
      const d = dy[i] as number;
      const s = sigmoid(x);
      const factor = up ? (up[i] as number) : 1;
      dGate[i] = d * factor * s * (1 + x * (1 - s));
      if (dUp) dUp[i] = d * x * s;
    }
  },
};

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
