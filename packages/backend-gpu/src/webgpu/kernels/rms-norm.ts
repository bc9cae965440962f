import { f32, flat, input, output, u32 } from '../launch';
import { columnSum } from './column-sum';
import {
  extent,
  type KernelContext,
  type Kernels,
  reductions,
} from './context';

export const rmsNormKernels = (
  context: KernelContext,
): Kernels<'rmsNorm' | 'rmsNormBackward'> => ({
  /** y = w x r, r = 1 / sqrt(mean(x^2) + eps) */
  rmsNorm({ x, weight }, { y }, { eps }) {
    const width = extent(x, -1);
    const rows = x.size / width;
    const threads = threadsFor(width);
    context.run({
      kernel: 'rmsNorm',
      constants: { THREADS: threads },
      bindings: { x: input(x), weight: input(weight), y: output(y) },
      uniforms: {
        rows: u32(rows),
        width: u32(width),
        norms: u32(weight.size / width),
        eps: f32(eps),
      },
      grid: flat(rows),
      source: () => ({
        threads,
        declarations: `${reductions(threads)}`,
        body: `let row = group.x + group.y * groups.x;
if (row >= u.rows) { return; }
${inverseRoot}
let w = (row % u.norms) * u.width;
for (var c = tid; c < u.width; c += THREADS) {
  y[start + c] = t_y(f32(weight[w + c]) * f32(x[start + c]) * r);
}`,
      }),
    });
  },

  /**
   * dx = r w dy - x r^3 mean(w dy x), and plus where there is one
   * dw = sum over rows of dy x r
   */
  rmsNormBackward({ x, weight, dy, plus }, { dx, dWeight }, { eps }) {
    const width = extent(x, -1);
    const rows = x.size / width;
    const threads = threadsFor(width);
    const terms = context.scratch(x.size, 'f32');
    context.run({
      kernel: 'rmsNormBackward',
      constants: { THREADS: threads },
      bindings: {
        x: input(x),
        weight: input(weight),
        dy: input(dy),
        plus: plus && input(plus),
        dx: output(dx),
        terms: output(terms),
      },
      uniforms: {
        rows: u32(rows),
        width: u32(width),
        norms: u32(weight.size / width),
        eps: f32(eps),
      },
      grid: flat(rows),
      source: () => ({
        threads,
        declarations: `${reductions(threads)}`,
        body: `let row = group.x + group.y * groups.x;
if (row >= u.rows) { return; }
${inverseRoot}
let w = (row % u.norms) * u.width;
var sum = 0.0;
for (var c = tid; c < u.width; c += THREADS) {
  let d = f32(dy[start + c]) * f32(x[start + c]);
  terms[start + c] = d * r;
  sum += d * f32(weight[w + c]);
}
let pull = r * r * r * reduceSum(tid, sum) / f32(u.width);
for (var c = tid; c < u.width; c += THREADS) {
  let d = r * f32(weight[w + c]) * f32(dy[start + c]);
  let other = ${plus ? 'f32(plus[start + c])' : '0.0'};
  dx[start + c] = t_dx(d - pull * f32(x[start + c]) + other);
}`,
      }),
    });
    const columns = weight.size;
    columnSum(context, terms, x.size / columns, columns, dWeight);
    terms.free();
  },
});

const inverseRoot = `let start = row * u.width;
var squares = 0.0;
for (var c = tid; c < u.width; c += THREADS) {
  let value = f32(x[start + c]);
  squares += value * value;
}
let r = 1.0 / sqrt(reduceSum(tid, squares) / f32(u.width) + u.eps);`;

/** A power of two: short rows leave no thread idle. */
function threadsFor(width: number): number {
  return Math.min(256, Math.max(32, 2 ** Math.ceil(Math.log2(width))));
}
