import { f32, i32 } from '../launch';
import { columnSum } from './column-sum';
import {
  extent,
  type KernelContext,
  type Kernels,
  threadsFor,
  typed,
} from './context';

export const rmsNormKernels = (
  context: KernelContext,
): Kernels<'rmsNorm' | 'rmsNormBackward'> => ({
  rmsNorm({ x, weight }, { y }, { eps }) {
    const width = extent(x, -1);
    context.run({
      file: 'rms-norm',
      entry: 'rmsNorm',
      defines: typed(x),
      grid: [x.size / width],
      threads: [threadsFor(width)],
      arguments: [x, weight, y, i32(width), i32(weight.size / width), f32(eps)],
    });
  },

  rmsNormBackward({ x, weight, dy }, { dx, dWeight }, { eps }) {
    const width = extent(x, -1);
    const terms = context.scratch(x.size, 'f32');
    context.run({
      file: 'rms-norm',
      entry: 'rmsNormBackward',
      defines: typed(x),
      grid: [x.size / width],
      threads: [threadsFor(width)],
      arguments: [
        x,
        weight,
        dy,
        dx,
        terms,
        i32(width),
        i32(weight.size / width),
        f32(eps),
      ],
    });
    const columns = weight.size;
    columnSum(context, terms, x.size / columns, columns, dWeight);
    terms.free();
  },
});
