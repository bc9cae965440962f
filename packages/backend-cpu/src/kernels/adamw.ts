import { floats, type Kernels } from './operands';

export const adamwKernels: Kernels<'adamw'> = {
  /**
   * p -= lr wd p
   * g = gradient factor
   * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
   * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
   */
  adamw(inputs, _outputs, attributes) {
    const { learningRate, beta1, beta2, eps, weightDecay, step } = attributes;
    const p = floats(inputs.parameter);
    const gradient = floats(inputs.gradient);
    const m = floats(inputs.m);
    const v = floats(inputs.v);
    const rounded = inputs.rounded && floats(inputs.rounded);
    const norm = inputs.squaredNorm && floats(inputs.squaredNorm);
    const { lossScale = 1, clip } = attributes;
    const length = Math.sqrt(norm?.[0] ?? 0) / lossScale;
    const factor = clipping(length, clip) / lossScale;
    const mCorrection = 1 - beta1 ** step;
    const vCorrection = 1 - beta2 ** step;
    for (let i = 0; i < p.length; i++) {
      const g = (gradient[i] as number) * factor;
      const mi = beta1 * (m[i] as number) + (1 - beta1) * g;
      const vi = beta2 * (v[i] as number) + (1 - beta2) * g * g;
      const decayed = (p[i] as number) * (1 - learningRate * weightDecay);
      const root = Math.sqrt(vi / vCorrection) + eps;
      p[i] = decayed - (learningRate * (mi / mCorrection)) / root;
      m[i] = mi;
      v[i] = vi;
    }
    rounded?.set(p);
  },
};

/** min(1, clip / (norm + 1e-6)), as PyTorch's clip_grad_norm_ */
function clipping(norm: number, clip: number | undefined): number {
  if (clip === undefined) return 1;
  return Math.min(1, clip / (norm + 1e-6));
}
