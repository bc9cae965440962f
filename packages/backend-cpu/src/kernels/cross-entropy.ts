import { type Floats, floats, indices, type Kernels } from './operands';

export const crossEntropyKernels: Kernels<
  'crossEntropy' | 'crossEntropyBackward'
> = {
  /** loss[n] = lse[n] - logits[n, targets[n]], 0 where the target is -1 */
  crossEntropy(inputs, outputs) {
    const logits = floats(inputs.logits);
    const targets = indices(inputs.targets);
    const loss = floats(outputs.loss);
    const lse = floats(outputs.lse);
    const [rows = 0, vocabulary = 0] = inputs.logits.shape;
    for (let n = 0; n < rows; n++) {
      const target = targets[n] as number;
      const start = n * vocabulary;
      const sum = logSumExp(logits, start, vocabulary);
      lse[n] = sum;
      loss[n] = target === -1 ? 0 : sum - (logits[start + target] as number);
    }
  },

  /** dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]) */
  crossEntropyBackward(inputs, outputs) {
    const logits = floats(inputs.logits);
    const targets = indices(inputs.targets);
    const lse = floats(inputs.lse);
    const dLoss = floats(inputs.dLoss);
    const dLogits = floats(outputs.dLogits);
    const [rows = 0, vocabulary = 0] = inputs.logits.shape;
    for (let n = 0; n < rows; n++) {
      const target = targets[n] as number;
      const start = n * vocabulary;
      if (target === -1) {
        dLogits.fill(0, start, start + vocabulary);
        continue;
      }
      for (let v = 0; v < vocabulary; v++) {
        const p = Math.exp((logits[start + v] as number) - (lse[n] as number));
        dLogits[start + v] =
          (dLoss[n] as number) * (p - (v === target ? 1 : 0));
      }
    }
  },
};

/** max + log(sum of exp(x - max)) */
function logSumExp(x: Floats, start: number, count: number): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = start; i < start + count; i++)
    max = Math.max(max, x[i] as number);
  let sum = 0;
  for (let i = start; i < start + count; i++) {
    sum += Math.exp((x[i] as number) - max);
  }
  return max + Math.log(sum);
}
