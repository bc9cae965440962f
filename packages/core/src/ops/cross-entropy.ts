import type { Tensor } from '../tensor';
import { type Operator, Rules, statisticType } from './operator';

const rules = new Rules('crossEntropy');
type None = Record<string, never>;

/**
 * `loss[n] = lse[n] - logits[n, targets[n]]` in nats, `lse` the natural
 * log-sum-exp of the row. Target -1 is not counted: loss 0, gradient 0.
 * `logits [N, V]`, `targets` i32 `[N]`; `loss`, `lse [N]` f32 (f64).
 */
export const crossEntropy: Operator<
  { logits: Tensor; targets: Tensor },
  { loss: Tensor; lse: Tensor },
  None
> = {
  name: 'crossEntropy',
  infer({ logits, targets }) {
    const dtype = rules.floats({ logits });
    const [rows, vocabulary] = rules.extents('logits', logits, 2);
    rules.positive('the vocabulary', vocabulary);
    rules.indices('targets', targets);
    rules.shape('targets', targets, [rows]);
    const spec = { shape: [rows], dtype: statisticType(dtype) };
    return { loss: spec, lse: spec };
  },
  gradient(scope, { inputs, outputs, gradients }) {
    if (!gradients.loss) return {};
    return {
      logits: scope.run(
        crossEntropyBackward,
        { ...inputs, lse: outputs.lse, dLoss: gradients.loss },
        {},
      ).dLogits,
    };
  },
};

/** `dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target])`. */
export const crossEntropyBackward: Operator<
  { logits: Tensor; targets: Tensor; lse: Tensor; dLoss: Tensor },
  { dLogits: Tensor },
  None
> = {
  name: 'crossEntropyBackward',
  infer({ logits, targets, lse, dLoss }) {
    const dtype = rules.floats({ logits });
    const [rows] = rules.extents('logits', logits, 2);
    rules.indices('targets', targets);
    rules.shape('targets', targets, [rows]);
    for (const [name, spec] of Object.entries({ lse, dLoss })) {
      rules.statistic(name, spec, dtype);
      rules.shape(name, spec, [rows]);
    }
    return { dLogits: { shape: logits.shape, dtype } };
  },
};
