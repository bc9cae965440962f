import { f32, i64 } from '../launch';
import {
  elementwise,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

export const adamwKernels = (context: KernelContext): Kernels<'adamw'> => ({
  adamw({ parameter, gradient, m, v, squaredNorm }, _outputs, attributes) {
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
      defines: typed(parameter),
      ...elementwise(count),
      arguments: [parameter, gradient, m, v, norm, ...rates, i64(count)],
    });
  },
});
