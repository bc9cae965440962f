import { input, output, u32 } from '../launch';
import { type KernelContext, type Kernels, reductions } from './context';

const THREADS = 256;
const MOST_PARTS = 1024;

export const squaredNormKernels = (
  context: KernelContext,
): Kernels<'squaredNorm'> => ({
  /** total += sum(x^2): some sums side by side, then their sum */
  squaredNorm({ x, total }) {
    const parts = Math.min(MOST_PARTS, Math.ceil(x.size / (4 * THREADS)));
    if (parts === 0) return;
    const partial = context.scratch(parts, 'f32');
    context.run({
      kernel: 'squaredNorm',
      constants: {},
      bindings: { x: input(x), partial: output(partial) },
      uniforms: { count: u32(x.size) },
      grid: [parts],
      source: () => ({
        threads: THREADS,
        declarations: reductions(THREADS),
        body: `var sum = 0.0;
for (var i = group.x * ${THREADS}u + tid; i < u.count; i += groups.x * ${THREADS}u) {
  let value = f32(x[i]);
  sum += value * value;
}
let all = reduceSum(tid, sum);
if (tid == 0u) { partial[group.x] = all; }`,
      }),
    });
    context.run({
      kernel: 'squaredNormTotal',
      constants: {},
      bindings: { partial: input(partial), total: output(total) },
      uniforms: { count: u32(parts) },
      grid: [1],
      source: () => ({
        threads: THREADS,
        declarations: reductions(THREADS),
        body: `var sum = 0.0;
for (var i = tid; i < u.count; i += ${THREADS}u) { sum += partial[i]; }
let all = reduceSum(tid, sum);
if (tid == 0u) { total[0] += all; }`,
      }),
    });
    partial.free();
  },
});
