import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('squaredNorm');

/**
 * `total += sum(x^2)`, in place: called once a parameter it gives the squared
 * global gradient norm. `total [1]` f32 (f64).
 */
export const squaredNorm: Operator<
  { x: Tensor; total: Tensor },
  Record<never, Tensor>,
  Record<string, never>
> = {
  name: 'squaredNorm',
  mutates: ['total'],
  infer({ x, total }) {
    const dtype = rules.floats({ x });
    rules.statistic('total', total, dtype);
    rules.shape('total', total, [1]);
    return {};
  },
};
