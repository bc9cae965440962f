import { ShapeError } from '../errors';
import { formatShape, type Tensor, type TensorSpec } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('rmsNorm');

export interface RmsNormAttributes {
  readonly eps: number;
}

/**
 * `y = w * x / sqrt(mean(x^2) + eps)` over the last axis, the mean in f32 or
 * better. `x [..., D]`; `weight` has the last axes of x: `[D]`, or `[G, D]`
 * for one norm a latent group.
 */
export const rmsNorm: Operator<
  { x: Tensor; weight: Tensor },
  { y: Tensor },
  RmsNormAttributes
> = {
  name: 'rmsNorm',
  infer({ x, weight }, { eps }) {
    const dtype = rules.floats({ x, weight });
    suffix(x, weight);
    rules.finite('eps', eps);
    return { y: { shape: x.shape, dtype } };
  },
  gradient(scope, { inputs, attributes, gradients, accumulated }) {
    if (!gradients.y) return {};
    const { dx, dWeight } = scope.run(
      rmsNormBackward,
      { ...inputs, dy: gradients.y, plus: accumulated('x') },
      attributes,
    );
    return { x: dx, weight: dWeight };
  },
};

/** The gradients; `plus` of x's shape, its other uses' gradient, is added to dx. */
export const rmsNormBackward: Operator<
  { x: Tensor; weight: Tensor; dy: Tensor; plus?: Tensor },
  { dx: Tensor; dWeight: Tensor },
  RmsNormAttributes
> = {
  name: 'rmsNormBackward',
  infer({ x, weight, dy, plus }) {
    const dtype = rules.floats({ x, weight, dy, plus });
    suffix(x, weight);
    rules.shape('dy', dy, x.shape);
    if (plus) rules.shape('plus', plus, x.shape);
    return {
      dx: { shape: x.shape, dtype },
      dWeight: { shape: weight.shape, dtype },
    };
  },
};

function suffix(x: TensorSpec, weight: TensorSpec): void {
  const tail = x.shape.slice(x.shape.length - weight.shape.length);
  if (
    weight.shape.length < 1 ||
    weight.shape.length > x.shape.length ||
    tail.some((extent, axis) => extent !== weight.shape[axis]) ||
    (tail.at(-1) ?? 0) < 1
  ) {
    throw new ShapeError(
      `rmsNorm: weight must have the last axes of x, got ${formatShape(weight.shape)} for x ${formatShape(x.shape)}`,
    );
  }
}
