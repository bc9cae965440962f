import { program, quotient } from '../program';
import { add } from './add';
import type { KernelContext, Kernels } from './context';

/** r = 1 / sqrt(mean(x^2) + eps), one a row */
const roots = program(
  'rmsNormRoots',
  { arrays: ['x'], integers: ['width'], reals: ['eps'] },
  `let sum = 0;
  for (let c = 0; c < width; c++) {
    const value = x[this.thread.x * width + c];
    sum += value * value;
  }
  return 1 / Math.sqrt(sum / width + eps);`,
);

/** The row of `weight` that a row of x has: they take turns. */
const group = `const group = this.thread.y
    - ${quotient('this.thread.y', 'groups')} * groups;`;

const forward = program(
  'rmsNorm',
  { arrays: ['x', 'weight', 'r'], integers: ['width', 'groups'] },
  `${group}
  return weight[Math.floor(group) * width + this.thread.x]
    * x[this.thread.y * width + this.thread.x] * r[this.thread.y];`,
);

/** r^3 mean(w dy x), one a row */
const pulls = program(
  'rmsNormPulls',
  { arrays: ['x', 'weight', 'dy', 'r'], integers: ['width', 'groups'] },
  `const group = this.thread.x
    - ${quotient('this.thread.x', 'groups')} * groups;
  let sum = 0;
  for (let c = 0; c < width; c++) {
    sum += weight[Math.floor(group) * width + c]
      * dy[this.thread.x * width + c] * x[this.thread.x * width + c];
  }
  const root = r[this.thread.x];
  return root * root * root * sum / width;`,
);

const backward = program(
  'rmsNormBackward',
  {
    arrays: ['x', 'weight', 'dy', 'r', 'pull'],
    integers: ['width', 'groups'],
  },
  `${group}
  return r[this.thread.y] * weight[Math.floor(group) * width + this.thread.x]
    * dy[this.thread.y * width + this.thread.x]
    - pull[this.thread.y] * x[this.thread.y * width + this.thread.x];`,
);

const weightGradient = program(
  'rmsNormBackwardWeight',
  {
    arrays: ['x', 'dy', 'r'],
    integers: ['width', 'groups', 'count'],
  },
  `let sum = 0;
  for (let n = 0; n < count; n++) {
    sum += dy[((n * groups) + this.thread.y) * width + this.thread.x]
      * x[((n * groups) + this.thread.y) * width + this.thread.x]
      * r[n * groups + this.thread.y];
  }
  return sum;`,
);

export const rmsNormKernels = (
  context: KernelContext,
): Kernels<'rmsNorm' | 'rmsNormBackward'> => ({
  /** y = w x r */
  rmsNorm({ x, weight }, { y }, { eps }) {
    const width = x.shape.at(-1) ?? 1;
    const [rows, groups] = [x.size / width, weight.size / width];
    const r = context.scratch(rows);
    context.run(roots, { x, width, eps }, r, [rows]);
    context.run(forward, { x, weight, r, width, groups }, y, [width, rows]);
    context.release(r);
  },

  /**
   * dx = r w dy - x r^3 mean(w dy x) + plus
   * dw = sum over rows of dy x r
   */
  rmsNormBackward({ x, weight, dy, plus }, { dx, dWeight }, { eps }) {
    const width = x.shape.at(-1) ?? 1;
    const [rows, groups] = [x.size / width, weight.size / width];
    const r = context.scratch(rows);
    const pull = context.scratch(rows);
    context.run(roots, { x, width, eps }, r, [rows]);
    const all = { x, weight, dy, r, width, groups };
    context.run(pulls, all, pull, [rows]);
    context.run(backward, { ...all, pull }, dx, [width, rows]);
    if (plus) context.run(add, { a: dx, b: plus }, dx, [dx.size]);
    const count = rows / groups;
    const sums = { x, dy, r, width, groups, count };
    context.run(weightGradient, sums, dWeight, [width, groups]);
    context.release(r);
    context.release(pull);
  },
});
