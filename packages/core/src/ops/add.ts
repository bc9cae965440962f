import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('add');

/** `y = a + b`, equal shapes: residual connections and sums of gradients. */
export const add: Operator<
  { a: Tensor; b: Tensor },
  { y: Tensor },
  Record<string, never>
> = {
  name: 'add',
  infer({ a, b }) {
    const dtype = rules.floats({ a, b });
    rules.shape('b', b, a.shape);
    return { y: { shape: a.shape, dtype } };
  },
  gradient: (_scope, { gradients }) => ({ a: gradients.y, b: gradients.y }),
};
