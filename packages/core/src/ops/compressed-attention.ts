import {
  type AttentionOperands,
  attentionPair,
  checkOperands,
  checkScale,
} from './attention-operands';
import { type BlockAttributes, checkBlocking } from './compress';
import { Rules, type SpecsOf } from './operator';

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
export const {
  forward: compressedAttention,
  backward: compressedAttentionBackward,
} = attentionPair<AttentionOperands, CompressedAttentionAttributes>(
  rules,
  check,
);

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
