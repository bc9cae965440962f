import { ShapeError } from '../errors';
import type { Tensor } from '../tensor';
import { type Operator, Rules, statisticType } from './operator';

export interface SampleAttributes {
  /** Only tokens below it can come: an embedding may have rows that mean nothing. */
  readonly width: number;
}

/** Columns of `settings`. */
const columns = 5;
/** Tokens that f32 can hold. */
const mostTokens = 2 ** 24;

const rules = new Rules('sample');

/**
 * Chooses a token for each row of `logits [R, V]`. `settings [R, 5]`, f32 (f64):
 * temperature (0 takes the best token, ties by lower id), top-k (at least 1),
 * top-p (1 keeps all), min-p (0 keeps all), and a uniform random number in
 * [0, 1), which falls into the kept tokens' probabilities in the order of
 * their ids. The steps are those of the engine's sampler, in its order.
 * `tokens` i32 `[R]`, -1 where a logit is NaN or +Infinity. `chosen [R, 2]`,
 * f32 (f64): the token once more, and the natural logarithm of its probability
 * before any of the steps.
 */
export const sample: Operator<
  { logits: Tensor; settings: Tensor },
  { tokens: Tensor; chosen: Tensor },
  SampleAttributes
> = {
  name: 'sample',
  infer({ logits, settings }, { width }) {
    const dtype = rules.floats({ logits });
    const [rows, vocabulary] = rules.extents('logits', logits, 2);
    rules.statistic('settings', settings, dtype);
    rules.shape('settings', settings, [rows, columns]);
    rules.positive('width', width);
    if (width > vocabulary || width > mostTokens) {
      throw new ShapeError(
        `sample: width must be at most the vocabulary, ${vocabulary}, and 2^24, got ${width}`,
      );
    }
    return {
      tokens: { shape: [rows], dtype: 'i32' },
      chosen: { shape: [rows, 2], dtype: statisticType(dtype) },
    };
  },
};
