import { floats, type Kernels } from './operands';

export const squaredNormKernels: Kernels<'squaredNorm'> = {
  /** total += sum(x^2) */
  squaredNorm(inputs) {
    const x = floats(inputs.x);
    const total = floats(inputs.total);
    let sum = total[0] as number;
    for (let i = 0; i < x.length; i++) sum += (x[i] as number) ** 2;
    total[0] = sum;
  },
};
