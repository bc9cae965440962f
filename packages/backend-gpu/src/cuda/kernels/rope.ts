import { f32, i32, i64 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

export const ropeKernels = (context: KernelContext): Kernels<'rope'> => ({
  rope({ x, positions, frequencies }, { y }, { style, inverse = false }) {
    const pairs = extent(x, 2) / 2;
    const [step, apart] = style === 'half' ? [1, pairs] : [2, 1];
    const count = y.size / 2;
    context.run({
      file: 'rope',
      entry: 'rope',
      defines: typed(x),
      ...elementwise(count),
      arguments: [
        x,
        positions,
        frequencies,
        y,
        i64(count),
        i32(extent(x, 1)),
        i32(pairs),
        i32(step),
        i32(apart),
        f32(inverse ? -1 : 1),
      ],
    });
  },
});
