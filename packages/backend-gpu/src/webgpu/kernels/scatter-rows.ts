import { input, output, u32 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
} from './context';

export const scatterRowsKernels = (
  context: KernelContext,
): Kernels<'scatterRows'> => ({
  /** target[rows[i]] = x[i] */
  scatterRows({ target, x, rows }) {
    if (x.size === 0) return;
    context.run({
      kernel: 'scatterRows',
      constants: {},
      bindings: { target_: output(target), x: input(x), rows: input(rows) },
      uniforms: {
        count: u32(x.size),
        width: u32(x.size / rows.size),
        extent: u32(extent(target, 0)),
      },
      ...elementwise(
        x.size,
        () => `let row = u32(rows[i / u.width]);
if (row < u.extent) { target_[row * u.width + i % u.width] = x[i]; }`,
      ),
    });
  },
});
