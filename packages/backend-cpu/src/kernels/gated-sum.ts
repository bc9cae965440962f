import type { Tensor } from '@asa/core';
import { floats, type Kernels } from './operands';

export const gatedSumKernels: Kernels<'gatedSum' | 'gatedSumBackward'> = {
  /** y[n, i] = sum over branches of sigmoid(gates[n, i, branch] + bias) o */
  gatedSum(inputs, outputs) {
    const branches = present(inputs.compressed, inputs.selected, inputs.window);
    const gates = floats(inputs.gates);
    const bias = inputs.bias && floats(inputs.bias);
    const y = floats(outputs.y);
    const [rows = 0, heads = 0, width = 0] = outputs.y.shape;
    for (let row = 0; row < rows * heads; row++) {
      const g = branches.map((_, branch) => {
        const gate = row * branches.length + branch;
        return sigmoid(
          (gates[gate] as number) + (bias?.[gate % bias.length] ?? 0),
        );
      });
      for (let c = row * width; c < (row + 1) * width; c++) {
        let sum = 0;
        for (let branch = 0; branch < g.length; branch++) {
          sum += (g[branch] as number) * (branches[branch]?.[c] as number);
        }
        y[c] = sum;
      }
    }
  },

  /**
   * dO = g dY
   * dGates = g (1 - g) (dY . o),  dBias = sum over n of dGates,  delta = dO . o
   */
  gatedSumBackward(inputs, outputs) {
    const branches = present(inputs.compressed, inputs.selected, inputs.window);
    const gradients = present(
      outputs.dCompressed,
      outputs.dSelected,
      outputs.dWindow,
    );
    const deltas = present(
      outputs.deltaCompressed,
      outputs.deltaSelected,
      outputs.deltaWindow,
    );
    const gates = floats(inputs.gates);
    const bias = inputs.bias && floats(inputs.bias);
    const dY = floats(inputs.dY);
    const dGates = floats(outputs.dGates);
    const [rows = 0, heads = 0, width = 0] = inputs.dY.shape;
    const dBias = new Float64Array(heads * branches.length);
    branches.forEach((o, branch) => {
      const dO = gradients[branch] ?? o;
      for (let row = 0; row < rows * heads; row++) {
        const gate = row * branches.length + branch;
        const slot = gate % dBias.length;
        const g = sigmoid((gates[gate] as number) + (bias?.[slot] ?? 0));
        let dot = 0;
        for (let c = row * width; c < (row + 1) * width; c++) {
          dot += (dY[c] as number) * (o[c] as number);
          dO[c] = g * (dY[c] as number);
        }
        const delta = deltas[branch];
        if (delta) delta[row] = g * dot;
        const d = g * (1 - g) * dot;
        dGates[gate] = d;
        dBias[slot] = (dBias[slot] as number) + d;
      }
    });
    if (outputs.dBias) floats(outputs.dBias).set(dBias);
  },
};

/** The branches there are, in the order of their gates. */
function present(...branches: readonly (Tensor | undefined)[]) {
  return branches.flatMap((branch) => (branch ? [floats(branch)] : []));
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
