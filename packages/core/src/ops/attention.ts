import type { Sequences } from '../sequences';
import {
  type AttentionOperands,
  attentionPair,
  checkOperands,
  checkScale,
} from './attention-operands';
import { Rules, type SpecsOf } from './operator';

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
export const { forward: attention, backward: attentionBackward } =
  attentionPair<AttentionOperands, AttentionAttributes>(rules, check);

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
