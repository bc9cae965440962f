import { f32, input, output, u32 } from '../launch';
import { elementwise, type KernelContext, type Kernels } from './context';

export const adamwKernels = (context: KernelContext): Kernels<'adamw'> => ({
  /**
   * p -= lr wd p
   * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
   * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
   */
  adamw(inputs, _outputs, attributes) {
    const { parameter, gradient, m, v, squaredNorm, rounded } = inputs;
    const { learningRate, beta1, beta2, eps, weightDecay, step, clip } =
      attributes;
    const { lossScale = 1 } = attributes;
    const norm = clip === undefined ? undefined : squaredNorm;
    const factor = norm
      ? 'min(1.0, u.clip / (sqrt(squaredNorm[0]) * u.unscale + 1e-6))'
      : '1.0';
    context.run({
      kernel: 'adamw',
      constants: {},
      bindings: {
        parameter: output(parameter),
        gradient: input(gradient),
        m: output(m),
        v: output(v),
        squaredNorm: norm && input(norm),
        rounded: rounded && output(rounded),
      },
      uniforms: {
        count: u32(parameter.size),
        beta1: f32(beta1),
        rest1: f32(1 - beta1),
        beta2: f32(beta2),
        rest2: f32(1 - beta2),
        keep: f32(1 - learningRate * weightDecay),
        // Corrections in double on the host: 1 - b2^t loses digits in f32.
        rate: f32(learningRate / (1 - beta1 ** step)),
        correction: f32(1 / (1 - beta2 ** step)),
        eps: f32(eps),
        clip: f32(clip ?? 0),
        unscale: f32(1 / lossScale),
      },
      ...elementwise(
        parameter.size,
        () => `let g = f32(gradient[i]) * u.unscale * ${factor};
let mi = u.beta1 * f32(m[i]) + u.rest1 * g;
let vi = u.beta2 * f32(v[i]) + u.rest2 * g * g;
let root = sqrt(vi * u.correction) + u.eps;
let next = f32(parameter[i]) * u.keep - u.rate * mi / root;
parameter[i] = t_parameter(next);
${rounded ? 'rounded[i] = t_rounded(next);' : ''}
m[i] = t_m(mi);
v[i] = t_v(vi);`,
      ),
    });
  },
});
