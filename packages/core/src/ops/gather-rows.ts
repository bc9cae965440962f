import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('gatherRows');

/**
 * `y[i] = x[rows[i]]`: embedding look-up, last-token logits, reading a ring in
 * order, index lists too. `x [R, ...]`, `rows` i32 `[M]` in `[0, R)` (checked where they are
 * made, on the host), `y [M, ...]`.
 */
export const gatherRows: Operator<
  { x: Tensor; rows: Tensor },
  { y: Tensor },
  Record<string, never>
> = {
  name: 'gatherRows',
  infer({ x, rows }) {
    const [count] = rules.extents('rows', rows, 1);
    rules.indices('rows', rows);
    const shape = [count, ...x.shape.slice(1)];
    return { y: { shape, dtype: x.dtype } };
  },
  gradient(scope, { inputs, gradients }) {
    if (!gradients.y) return {};
    return {
      x: scope.run(
        gatherRowsBackward,
        { dy: gradients.y, rows: inputs.rows },
        { extent: inputs.x.shape[0] ?? 0 },
      ).dx,
    };
  },
};

/** `dx[r] = sum of dy[i] over rows[i] = r`, in the order of i; `dx [R, ...]`. */
export const gatherRowsBackward: Operator<
  { dy: Tensor; rows: Tensor },
  { dx: Tensor },
  { readonly extent: number }
> = {
  name: 'gatherRowsBackward',
  infer({ dy, rows }, { extent }) {
    const dtype = rules.floats({ dy });
    rules.indices('rows', rows);
    rules.shape('rows', rows, [dy.shape[0] ?? 0]);
    return { dx: { shape: [extent, ...dy.shape.slice(1)], dtype } };
  },
};
