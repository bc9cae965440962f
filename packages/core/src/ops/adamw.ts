import type { Tensor } from '../tensor';
import { type Operator, Rules, statisticType } from './operator';

const rules = new Rules('adamw');

export interface AdamwAttributes {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decoupled; 0 for none. */
  readonly weightDecay: number;
  /** Counts from 1: the bias correction is `1 - beta^step`. */
  readonly step: number;
  /** Largest global gradient norm; needs `squaredNorm`. */
  readonly clip?: number;
  /** What loss scaling multiplied gradient and norm with; 1 when left out. */
  readonly lossScale?: number;
}

/**
 * One step of AdamW in place: `p -= lr wd p`, `m`, `v` moving averages,
 * `p -= lr m^ / (sqrt(v^) + eps)`. With `clip`, the gradient is first scaled by
 * `min(1, clip / (sqrt(squaredNorm) + 1e-6))`. Both are taken as divided by
 * `lossScale` (its square). `parameter`, `m` and `v` have one type; the gradient
 * may have another one, and so may `rounded`, a copy of the parameter for the
 * forward pass, which is written too. All have one shape; `squaredNorm [1]` f32
 * (f64). Source: arXiv 1711.05101.
 */
export const adamw: Operator<
  {
    parameter: Tensor;
    gradient: Tensor;
    m: Tensor;
    v: Tensor;
    squaredNorm?: Tensor;
    rounded?: Tensor;
  },
  Record<never, Tensor>,
  AdamwAttributes
> = {
  name: 'adamw',
  mutates: ['parameter', 'm', 'v', 'rounded'],
  infer({ parameter, gradient, m, v, squaredNorm, rounded }, attributes) {
    const dtype = rules.floats({ parameter, m, v });
    for (const [name, spec] of Object.entries({ gradient, m, v, rounded })) {
      if (spec) {
        rules.floats({ [name]: spec });
        rules.shape(name, spec, parameter.shape);
      }
    }
    const { step, clip, lossScale = 1, ...numbers } = attributes;
    rules.positive('step', step);
    rules.positiveReal('lossScale', lossScale);
    for (const [name, value] of Object.entries(numbers)) {
      rules.finite(name, value);
    }
    if (squaredNorm) {
      rules.shape('squaredNorm', squaredNorm, [1]);
      rules.statistic('squaredNorm', squaredNorm, statisticType(dtype));
    }
    if (clip !== undefined) {
      rules.finite('clip', clip);
      rules.present('squaredNorm', squaredNorm, 'clip');
    }
    return {};
  },
};
