import type { FloatType } from '../dtype';
import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('cast');

/** The same values in another real type, rounded to nearest even. */
export const cast: Operator<
  { x: Tensor },
  { y: Tensor },
  { readonly dtype: FloatType }
> = {
  name: 'cast',
  infer({ x }, { dtype }) {
    rules.floats({ x });
    return { y: { shape: x.shape, dtype } };
  },
  gradient: (scope, { inputs: { x }, gradients }) =>
    gradients.y
      ? {
          x: scope.run(cast, { x: gradients.y }, { dtype: rules.floats({ x }) })
            .y,
        }
      : {},
};
