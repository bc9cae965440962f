import type { Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import {
  type AttentionOperands,
  attentionPair,
  checkOperands,
  checkScale,
} from './attention-operands';
import { Rules, type SpecsOf } from './operator';

const rules = new Rules('selectedAttention');

export interface SelectedAttentionAttributes {
  readonly sequences: Sequences;
  readonly scale: number;
  /** `l'`: tokens of a selection block. */
  readonly blockSize: number;
  /** `r`: queries that share one list. */
  readonly sharing: number;
}

/** Attention operands and the lists of `selectBlocks`, i32 `[L, G, n]`. */
export interface SelectedAttentionOperands extends AttentionOperands {
  readonly indices: Tensor;
}

/**
 * Attention over the tokens of the listed blocks: the query at position t sees
 * the tokens `j <= t` of the blocks that its leader chose, -1 standing for no
 * block. Head i of H uses list `floor(i / (H / G))`. A query whose list holds
 * no visible token gives 0 and LSE -inf. Lists are constants to the gradient.
 * Source: maths.md §3, `o_slc`.
 */
export const {
  forward: selectedAttention,
  backward: selectedAttentionBackward,
} = attentionPair<SelectedAttentionOperands, SelectedAttentionAttributes>(
  rules,
  check,
);

function check(
  inputs: SpecsOf<SelectedAttentionOperands>,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
) {
  const extents = checkOperands(rules, inputs);
  checkScale(rules, scale);
  rules.positive('blockSize', blockSize);
  rules.positive('sharing', sharing);
  rules.divides('sharing', 'blockSize', sharing, blockSize);
  const { indices } = inputs;
  const [lists, groups, count] = rules.extents('indices', indices, 3);
  rules.indices('indices', indices);
  rules.positive('the length of a list', count);
  rules.divides('groups', 'heads', groups, extents.heads);
  rules.rows('indices', lists, sequences.leaderRows(sharing));
  rules.rows('q', extents.queries, sequences.queryRows);
  rules.rows('k', extents.keys, sequences.keyRows);
  return extents;
}
