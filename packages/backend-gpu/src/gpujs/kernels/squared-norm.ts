import { program } from '../program';
import type { KernelContext, Kernels } from './context';

/** Sums side by side: one sum in f32 loses digits where there are many terms. */
const parts = 1024;

const partial = program(
  'squaredNormPart',
  { arrays: ['x'], integers: ['count', 'parts'] },
  `let sum = 0;
  for (let i = 0; i * parts + this.thread.x < count; i++) {
    const value = x[i * parts + this.thread.x];
    sum += value * value;
  }
  return sum;`,
);

const whole = program(
  'squaredNorm',
  { arrays: ['total', 'sums'], integers: ['count'] },
  `let sum = 0;
  for (let i = 0; i < count; i++) { sum += sums[i]; }
  return total[0] + sum;`,
);

export const squaredNormKernels = (
  context: KernelContext,
): Kernels<'squaredNorm'> => ({
  /** total += sum(x^2) */
  squaredNorm({ x, total }) {
    const count = Math.min(parts, x.size);
    const sums = context.scratch(count);
    context.run(partial, { x, count: x.size, parts: count }, sums, [count]);
    context.run(whole, { total, sums, count }, total, [1]);
    context.release(sums);
  },
});
