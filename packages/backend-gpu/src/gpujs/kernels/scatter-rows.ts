import { program } from '../program';
import type { KernelContext, Kernels } from './context';
import { firstsOf } from './gather-rows';

const scatter = program(
  'scatterRows',
  { arrays: ['target', 'x', 'sources'], integers: ['width'] },
  `const i = sources[this.thread.y];
  if (i >= 0) { return x[Math.floor(i) * width + this.thread.x]; }
  return target[this.thread.y * width + this.thread.x];`,
);

export const scatterRowsKernels = (
  context: KernelContext,
): Kernels<'scatterRows'> => ({
  /** target[rows[i]] = x[i] */
  scatterRows({ target, x, rows }) {
    if (x.size === 0) return;
    const [extent = 0] = target.shape;
    const width = target.size / extent;
    const sources = firstsOf(context, rows, extent);
    const values = { target, x, sources, width };
    context.run(scatter, values, target, [width, extent]);
    context.release(sources);
  },
});
