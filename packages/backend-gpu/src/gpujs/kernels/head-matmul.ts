import { program, quotient } from '../program';
import type { KernelContext, Kernels } from './context';

type Weight = (head: string, m: string, k: string) => string;

/** W[i], `[M, K]`, stored as such or, where it is transposed, as `[K, M]`. */
const stored: Weight = (head, m, k) =>
  `w[(Math.floor(${head}) * outer + ${m}) * inner + ${k}]`;
const transposed: Weight = (head, m, k) =>
  `w[(Math.floor(${head}) * inner + ${k}) * outer + ${m}]`;

/** y[n, i, m]: n is `this.thread.y`, i M + m is `this.thread.x`. */
const forward = (name: string, w: Weight) =>
  program(
    name,
    { arrays: ['x', 'w'], integers: ['groups', 'share', 'outer', 'inner'] },
    `const head = ${quotient('this.thread.x', 'outer')};
  const row = this.thread.x - head * outer;
  const group = ${quotient('head', 'share')};
  let sum = 0;
  for (let k = 0; k < inner; k++) {
    sum += x[(this.thread.y * groups + Math.floor(group)) * inner + k]
      * ${w('head', 'Math.floor(row)', 'k')};
  }
  return sum;`,
  );

/** dx[n, g, k]: n is `this.thread.y`, g K + k is `this.thread.x`. */
const input = (name: string, w: Weight) =>
  program(
    name,
    { arrays: ['dy', 'w'], integers: ['heads', 'share', 'outer', 'inner'] },
    `const group = ${quotient('this.thread.x', 'inner')};
  const column = this.thread.x - group * inner;
  let sum = 0;
  for (let i = 0; i < share; i++) {
    const head = group * share + i;
    for (let m = 0; m < outer; m++) {
      sum += dy[(this.thread.y * heads + Math.floor(head)) * outer + m]
        * ${w('head', 'm', 'Math.floor(column)')};
    }
  }
  return sum;`,
  );

/**
 * dW[i]: its row is `this.thread.y`, its column `this.thread.x`, heads one
 * behind the other; `m` and `k` say which of them is which.
 */
const weight = (name: string, m: string, k: string) =>
  program(
    name,
    {
      arrays: ['x', 'dy'],
      integers: ['rows', 'groups', 'heads', 'share', 'outer', 'inner', 'tall'],
    },
    `const head = ${quotient('this.thread.y', 'tall')};
  const group = ${quotient('head', 'share')};
  const row = this.thread.y - head * tall;
  let sum = 0;
  for (let n = 0; n < rows; n++) {
    sum += dy[(n * heads + Math.floor(head)) * outer + ${m}]
      * x[(n * groups + Math.floor(group)) * inner + ${k}];
  }
  return sum;`,
  );

const forwards = [
  forward('headMatmul', stored),
  forward('headMatmulTransposed', transposed),
] as const;
const inputs = [
  input('headMatmulBackwardInput', stored),
  input('headMatmulBackwardInputTransposed', transposed),
] as const;
const weights = [
  weight('headMatmulBackwardWeight', 'Math.floor(row)', 'this.thread.x'),
  weight(
    'headMatmulBackwardWeightTransposed',
    'this.thread.x',
    'Math.floor(row)',
  ),
] as const;

export const headMatmulKernels = (
  context: KernelContext,
): Kernels<
  'headMatmul' | 'headMatmulBackwardInput' | 'headMatmulBackwardWeight'
> => ({
  /** y[n, i] = W[i] x[n, g(i)] */
  headMatmul({ x, w }, { y }, { transposeWeight = false }) {
    const [rows = 0, heads = 0, outer = 0] = y.shape;
    const [, groups = 1, inner = 0] = x.shape;
    const share = heads / groups;
    context.run(
      forwards[transposeWeight ? 1 : 0],
      { x, w, groups, share, outer, inner },
      y,
      [heads * outer, rows],
    );
  },

  /** dx[n, g] = sum over heads i of g of W[i]^T dy[n, i] */
  headMatmulBackwardInput({ dy, w }, { dx }, { transposeWeight = false }) {
    const [rows = 0, groups = 1, inner = 0] = dx.shape;
    const [, heads = 0, outer = 0] = dy.shape;
    const share = heads / groups;
    context.run(
      inputs[transposeWeight ? 1 : 0],
      { dy, w, heads, share, outer, inner },
      dx,
      [groups * inner, rows],
    );
  },

  /** dW[i] = sum over n of dy[n, i] x[n, g(i)]^T */
  headMatmulBackwardWeight({ x, dy }, { dw }, { transposeWeight = false }) {
    const [rows = 0, groups = 1, inner = 0] = x.shape;
    const [, heads = 0, outer = 0] = dy.shape;
    const [, tall = 0, wide = 0] = dw.shape;
    const share = heads / groups;
    context.run(
      weights[transposeWeight ? 1 : 0],
      { x, dy, rows, groups, heads, share, outer, inner, tall },
      dw,
      [wide, heads * tall],
    );
  },
});
