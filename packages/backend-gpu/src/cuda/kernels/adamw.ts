import { f32, i64 } from '../launch';
import { type KernelContext, type Kernels, piecewise, typed } from './context';

export const adamwKernels = (context: KernelContext): Kernels<'adamw'> => ({
  adamw(inputs, _outputs, attributes) {
    const { parameter, gradient, m, v, squaredNorm, rounded } = inputs;
    const { learningRate, beta1, beta2, eps, weightDecay, step, clip } =
      attributes;
    const { lossScale = 1 } = attributes;
    // Corrections in double on the host: 1 - b2^t loses digits in f32.
    const rates = [
      beta1,
      1 - beta1,
      beta2,
      1 - beta2,
      1 - learningRate * weightDecay,
      learningRate / (1 - beta1 ** step),
      1 / (1 - beta2 ** step),
      eps,
      clip ?? 0,
      1 / lossScale,
    ].map(f32);
    const norm = clip === undefined ? undefined : squaredNorm;
    const count = parameter.size;
    context.run({
      file: 'adamw',
      entry: 'adamw',
      defines: {
        ...typed(parameter),
        G: gradient.dtype,
        R: rounded?.dtype ?? parameter.dtype,
      },
      ...piecewise(count),
      arguments: [
        parameter,
        gradient,
        m,
        v,
        norm,
        rounded,
        ...rates,
        i64(count),
      ],
    });
  },
});
