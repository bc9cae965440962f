import type { Sequences } from '../sequences';
import {
  type AttentionGradients,
  type AttentionOperands,
  type AttentionResults,
  byOperand,
  checkOperands,
  checkScale,
  gradientSpecs,
  resultSpecs,
} from './attention-operands';
import { type Operator, Rules, type SpecsOf } from './operator';

const rules = new Rules('attention');

export interface AttentionAttributes {
  readonly sequences: Sequences;
  /** Factor of the scores, as a rule `1 / sqrt(Dk + dR)`. */
  readonly scale: number;
  /** Keys a query sees, itself included; all when missing. */
  readonly window?: number | undefined;
}

/**
 * Causal softmax attention: the query at position t of its sequence sees keys
 * `max(0, t - window + 1) .. t`. Multi-head, grouped, multi-query, latent,
 * with any `Dv`. Source: maths.md §2 and §4.
 */
export const attention: Operator<
  AttentionOperands,
  Pick<AttentionResults, 'o' | 'lse'>,
  AttentionAttributes
> = {
  name: 'attention',
  infer: (inputs, attributes) => resultSpecs(check(inputs, attributes)),
  gradient(scope, { inputs, outputs, attributes, gradients }) {
    if (!gradients.o) return {};
    rules.selfAttention(attributes.sequences);
    const operands = { ...inputs, ...outputs, dO: gradients.o };
    return byOperand(scope.run(attentionBackward, operands, attributes));
  },
};

/** Gathers per key, so that the same inputs give the same bits. */
export const attentionBackward: Operator<
  AttentionOperands & AttentionResults,
  AttentionGradients,
  AttentionAttributes
> = {
  name: 'attentionBackward',
  infer(inputs, attributes) {
    rules.selfAttention(attributes.sequences);
    return gradientSpecs(rules, inputs, check(inputs, attributes));
  },
};

function check(
  inputs: SpecsOf<AttentionOperands>,
  { sequences, scale, window }: AttentionAttributes,
) {
  const extents = checkOperands(rules, inputs);
  rules.rows('q', extents.queries, sequences.queryRows);
  rules.rows('k', extents.keys, sequences.keyRows);
  checkScale(rules, scale);
  if (window !== undefined) rules.positive('window', window);
  return extents;
}
