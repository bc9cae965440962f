import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('scatterRows');

/**
 * `target[rows[i]] = x[i]`, in place: cache writes. `target [R, ...]`,
 * `x [M, ...]`, `rows` i32 `[M]`, distinct, in `[0, R)`.
 */
export const scatterRows: Operator<
  { target: Tensor; x: Tensor; rows: Tensor },
  Record<never, Tensor>,
  Record<string, never>
> = {
  name: 'scatterRows',
  mutates: ['target'],
  infer({ target, x, rows }) {
    if (target.dtype === 'i32') rules.indices('x', x);
    else rules.floats({ target, x });
    rules.indices('rows', rows);
    rules.shape('x', x, [rows.shape[0] ?? 0, ...target.shape.slice(1)]);
    rules.extents('rows', rows, 1);
    return {};
  },
};
