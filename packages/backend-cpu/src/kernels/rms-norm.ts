import { type Floats, floats, type Kernels } from './operands';

export const rmsNormKernels: Kernels<'rmsNorm' | 'rmsNormBackward'> = {
  /** y = w x r, r = 1 / sqrt(mean(x^2) + eps) */
  rmsNorm(inputs, outputs, { eps }) {
    const x = floats(inputs.x);
    const w = floats(inputs.weight);
    const y = floats(outputs.y);
    const width = inputs.x.shape.at(-1) ?? 1;
    for (let row = 0; row < x.length; row += width) {
      const r = inverseRoot(x, row, width, eps);
      const weight = row % w.length;
      for (let c = 0; c < width; c++) {
        y[row + c] = (w[weight + c] as number) * (x[row + c] as number) * r;
      }
    }
  },

  /**
   * dx = r w dy - x r^3 mean(w dy x), and plus where there is one
   * dw = sum over rows of dy x r
   */
  rmsNormBackward(inputs, outputs, { eps }) {
    const x = floats(inputs.x);
    const w = floats(inputs.weight);
    const dy = floats(inputs.dy);
    const plus = inputs.plus && floats(inputs.plus);
    const dx = floats(outputs.dx);
    const width = inputs.x.shape.at(-1) ?? 1;
    const dWeight = new Float64Array(w.length);
    for (let row = 0; row < x.length; row += width) {
      const r = inverseRoot(x, row, width, eps);
      const weight = row % w.length;
      let sum = 0;
      for (let c = 0; c < width; c++) {
        const d = (dy[row + c] as number) * (x[row + c] as number);
        dWeight[weight + c] = (dWeight[weight + c] as number) + d * r;
        sum += d * (w[weight + c] as number);
      }
      const pull = (r ** 3 * sum) / width;
      for (let c = 0; c < width; c++) {
        dx[row + c] =
          r * (w[weight + c] as number) * (dy[row + c] as number) -
          pull * (x[row + c] as number) +
          (plus?.[row + c] ?? 0);
      }
    }
    floats(outputs.dWeight).set(dWeight);
  },
};

function inverseRoot(
  x: Floats,
  start: number,
  width: number,
  eps: number,
): number {
  let sum = 0;
  for (let c = start; c < start + width; c++) sum += (x[c] as number) ** 2;
  return 1 / Math.sqrt(sum / width + eps);
}
