import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('headMatmul');

export interface HeadMatmulAttributes {
  /** Multiply by the transpose of each head's matrix. */
  readonly transposeWeight?: boolean;
}

/**
 * One matrix a head: `y[n, i] = W[i] x[n, g(i)]`, head i of H reading group
 * `g(i) = floor(i / (H / G))`. `x [N, G, K]`, `w [H, M, K]` (`[H, K, M]` when
 * transposed), `y [N, H, M]`. Up-projects latents (`W_UK`, `W_UV`) and absorbs
 * them into queries. Source: maths.md §2.
 */
export const headMatmul: Operator<
  { x: Tensor; w: Tensor },
  { y: Tensor },
  HeadMatmulAttributes
> = {
  name: 'headMatmul',
  infer({ x, w }, { transposeWeight = false }) {
    const dtype = rules.floats({ x, w });
    const [n, groups, k] = rules.extents('x', x, 3);
    const [heads, w1, w2] = rules.extents('w', w, 3);
    rules.shape('w', w, transposeWeight ? [heads, k, w2] : [heads, w1, k]);
    rules.divides('groups', 'heads', groups, heads);
    return {
      y: { shape: [n, heads, transposeWeight ? w2 : w1], dtype },
    };
  },
  gradient(scope, { inputs: { x, w }, attributes, gradients, wants }) {
    const dy = gradients.y;
    if (!dy) return {};
    const groups = x.shape[1] ?? 1;
    return {
      x: wants('x')
        ? scope.run(
            headMatmulBackwardInput,
            { dy, w },
            { ...attributes, groups },
          ).dx
        : undefined,
      w: wants('w')
        ? scope.run(headMatmulBackwardWeight, { x, dy }, attributes).dw
        : undefined,
    };
  },
};

/** `dx[n, g] = sum over heads i of g of W[i]^T dy[n, i]`. */
export const headMatmulBackwardInput: Operator<
  { dy: Tensor; w: Tensor },
  { dx: Tensor },
  HeadMatmulAttributes & { readonly groups: number }
> = {
  name: 'headMatmulBackwardInput',
  infer({ dy, w }, { transposeWeight = false, groups }) {
    const dtype = rules.floats({ dy, w });
    const [n, heads, m] = rules.extents('dy', dy, 3);
    const [, w1, w2] = rules.extents('w', w, 3);
    rules.shape('w', w, transposeWeight ? [heads, w1, m] : [heads, m, w2]);
    rules.divides('groups', 'heads', groups, heads);
    return {
      dx: { shape: [n, groups, transposeWeight ? w1 : w2], dtype },
    };
  },
};

/** `dW[i] = sum over n of dy[n, i] x[n, g(i)]^T`, laid out as `w` is. */
export const headMatmulBackwardWeight: Operator<
  { x: Tensor; dy: Tensor },
  { dw: Tensor },
  HeadMatmulAttributes
> = {
  name: 'headMatmulBackwardWeight',
  infer({ x, dy }, { transposeWeight = false }) {
    const dtype = rules.floats({ x, dy });
    const [n, groups, k] = rules.extents('x', x, 3);
    const [, heads, m] = rules.extents('dy', dy, 3);
    rules.shape('dy', dy, [n, heads, m]);
    rules.divides('groups', 'heads', groups, heads);
    return {
      dw: { shape: transposeWeight ? [heads, k, m] : [heads, m, k], dtype },
    };
  },
};
