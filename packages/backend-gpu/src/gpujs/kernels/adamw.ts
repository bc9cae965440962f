import { program } from '../program';
import type { KernelContext, Kernels } from './context';

/** min(1, clip / (norm + 1e-6)), as PyTorch's clip_grad_norm_ */
const clipping = program(
  'adamwClipping',
  { arrays: ['squaredNorm'], reals: ['clip', 'lossScale'] },
  `const norm = Math.sqrt(squaredNorm[0]) / lossScale;
  return Math.min(1, clip / (norm + 0.000001)) / lossScale;`,
);

/** m = b1 m + (1 - b1) g */
const first = program(
  'adamwFirst',
  { arrays: ['m', 'gradient', 'factor'], reals: ['beta', 'rest'] },
  `return beta * m[this.thread.x]
    + rest * gradient[this.thread.x] * factor[0];`,
);

/** v = b2 v + (1 - b2) g^2 */
const second = program(
  'adamwSecond',
  { arrays: ['v', 'gradient', 'factor'], reals: ['beta', 'rest'] },
  `const g = gradient[this.thread.x] * factor[0];
  return beta * v[this.thread.x] + rest * g * g;`,
);

const step = program(
  'adamwStep',
  {
    arrays: ['parameter', 'm', 'v'],
    reals: ['kept', 'rate', 'mCorrection', 'vCorrection', 'eps'],
  },
  `const root = Math.sqrt(v[this.thread.x] / vCorrection) + eps;
  return parameter[this.thread.x] * kept
    - rate * (m[this.thread.x] / mCorrection) / root;`,
);

export const adamwKernels = (context: KernelContext): Kernels<'adamw'> => ({
  /**
   * p -= lr wd p
   * g = gradient factor
   * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
   * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
   */
  adamw(inputs, _outputs, attributes) {
    const { parameter, gradient, m, v, squaredNorm, rounded } = inputs;
    const { learningRate: rate, beta1, beta2, eps, weightDecay } = attributes;
    const { clip, lossScale = 1 } = attributes;
    const factor =
      squaredNorm && clip !== undefined
        ? context.scratch(1)
        : context.table([1 / lossScale]);
    if (squaredNorm && clip !== undefined) {
      context.run(clipping, { squaredNorm, clip, lossScale }, factor, [1]);
    }
    const threads = [parameter.size] as const;
    const moment = (beta: number) => ({ beta, rest: 1 - beta });
    context.run(first, { m, gradient, factor, ...moment(beta1) }, m, threads);
    context.run(second, { v, gradient, factor, ...moment(beta2) }, v, threads);
    const numbers = {
      kept: 1 - rate * weightDecay,
      rate,
      mCorrection: 1 - beta1 ** attributes.step,
      vCorrection: 1 - beta2 ** attributes.step,
      eps,
    };
    const values = { parameter, m, v, ...numbers };
    // The copy first: both are made from the parameter as it was.
    if (rounded) context.run(step, values, rounded, threads);
    context.run(step, values, parameter, threads);
    context.release(factor);
  },
});
