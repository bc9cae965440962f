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
import { type BlockAttributes, checkBlocking } from './compress';
import { type Operator, Rules, type SpecsOf } from './operator';

const rules = new Rules('compressedAttention');

export interface CompressedAttentionAttributes extends BlockAttributes {
  readonly scale: number;
}

/**
 * Attention over the compressed rows: the query at position t sees block b iff
 * `b d + l - 1 <= t`. `k`, `v`, `kRope` have one row a block, `[NB, ...]`. With
 * no visible block the output is 0, the LSE -inf and every gradient 0.
 * Source: maths.md §3, compression.
 */
export const compressedAttention: Operator<
  AttentionOperands,
  Pick<AttentionResults, 'o' | 'lse'>,
  CompressedAttentionAttributes
> = {
  name: 'compressedAttention',
  infer: (inputs, attributes) => resultSpecs(check(inputs, attributes)),
  gradient(scope, { inputs, outputs, attributes, gradients }) {
    if (!gradients.o) return {};
    const operands = { ...inputs, ...outputs, dO: gradients.o };
    return byOperand(
      scope.run(compressedAttentionBackward, operands, attributes),
    );
  },
};

export const compressedAttentionBackward: Operator<
  AttentionOperands & AttentionResults,
  AttentionGradients,
  CompressedAttentionAttributes
> = {
  name: 'compressedAttentionBackward',
  infer(inputs, attributes) {
    rules.selfAttention(attributes.sequences);
    return gradientSpecs(rules, inputs, check(inputs, attributes));
  },
};

function check(
  inputs: SpecsOf<AttentionOperands>,
  { sequences, scale, length, stride }: CompressedAttentionAttributes,
) {
  checkBlocking(rules, length, stride);
  const extents = checkOperands(rules, inputs);
  rules.rows('q', extents.queries, sequences.queryRows);
  rules.rows('k', extents.keys, sequences.blockRows({ length, stride }));
  checkScale(rules, scale);
  return extents;
}
