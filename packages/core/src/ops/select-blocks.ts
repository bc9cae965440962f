import { ArgumentError } from '../errors';
import type { Tensor } from '../tensor';
import { checkRotary } from './attention-operands';
import { type BlockAttributes, checkBlocking } from './compress';
import { type Operator, Rules, type SpecsOf, statisticType } from './operator';

/** The scores' side of compressed attention, and its LSE. */
export interface RankingOperands {
  /** `[Nq, H, Dk]` */
  readonly q: Tensor;
  /** Compressed keys, `[NB, Gk, Dk]`. */
  readonly k: Tensor;
  /** `[Nq, H, dR]` */
  readonly qRope?: Tensor | undefined;
  /** `[NB, 1, dR]` */
  readonly kRope?: Tensor | undefined;
  /** LSE of compressed attention, `[Nq, H]`. */
  readonly lse: Tensor;
}

export interface RankingAttributes extends BlockAttributes {
  readonly scale: number;
  /** `G`: groups that each choose their own blocks; divides H. */
  readonly groups: number;
  /** `l'`: tokens of a selection block; `d` and `r` divide it. */
  readonly blockSize: number;
  /** `r`: queries that share one selection. */
  readonly sharing: number;
}

export interface SelectBlocksAttributes extends RankingAttributes {
  /** `n`: blocks of a list, the forced ones included. */
  readonly count: number;
  /** First blocks that are always chosen. */
  readonly initial: number;
  /** Last blocks that are always chosen, the own one included; at least 1. */
  readonly local: number;
}

const importanceRules = new Rules('blockImportance');
const rules = new Rules('selectBlocks');

/**
 * How much each selection block matters to each leader's group:
 * `P[j] = sum over heads i, m in [0, l'/d), k in [0, l/d) of
 * p_i[(l'/d) j + m - k]`, `p` the probabilities of compressed attention, out of
 * range 0. `importance [L, G, NS]`, L leader rows, `NS = ceil(maxKeys / l')`.
 * What `selectBlocks` ranks by, for tests and for looking at. Rows of leaders
 * that stand before their sequence's first query are 0.
 * Source: maths.md §3, importance; NSA, arXiv 2502.11089, equation 9 and 10.
 */
export const blockImportance: Operator<
  RankingOperands,
  { importance: Tensor },
  RankingAttributes
> = {
  name: 'blockImportance',
  infer(inputs, attributes) {
    const dtype = statisticType(check(importanceRules, inputs, attributes));
    const { sequences, sharing, groups, blockSize } = attributes;
    const blocks = Math.ceil(sequences.maxKeys / blockSize);
    const shape = [sequences.leaderRows(sharing), groups, blocks];
    return { importance: { shape, dtype } };
  },
};

/**
 * The `n` blocks that each leader's group attends to: the first `initial`, the
 * last `local` up to the own one, and of the other blocks that do not lie in
 * the future the best by (importance descending, index ascending). Ascending,
 * padded with -1. `indices` i32 `[L, G, n]`: row
 * `leaderStart + floor(t / r) - floor(first query / r)` serves query t. Where
 * the first query is no leader, its list was chosen earlier and comes from
 * `previous` i32 `[S, G, n]`. Source: maths.md §3, selection and inheritance.
 */
export const selectBlocks: Operator<
  RankingOperands & { readonly previous?: Tensor | undefined },
  { indices: Tensor },
  SelectBlocksAttributes
> = {
  name: 'selectBlocks',
  infer(inputs, attributes) {
    check(rules, inputs, attributes);
    const { sequences, groups, sharing, count, initial, local } = attributes;
    rules.integer('initial', initial, 0);
    rules.positive('local', local);
    if (!Number.isSafeInteger(count) || count < initial + local) {
      throw new ArgumentError(
        `selectBlocks: count must hold the forced blocks, initial + local = ${initial + local}, got ${count}`,
      );
    }
    const { previous } = inputs;
    if (previous) {
      rules.indices('previous', previous);
      rules.shape('previous', previous, [sequences.count, groups, count]);
    }
    if (
      sequences.list.some((s) => (s.keyCount - s.queryCount) % sharing !== 0)
    ) {
      rules.present('previous', previous, 'a first query that is no leader');
    }
    const rows = sequences.leaderRows(sharing);
    return { indices: { shape: [rows, groups, count], dtype: 'i32' } };
  },
};

function check(
  rules: Rules,
  { q, k, qRope, kRope, lse }: SpecsOf<RankingOperands>,
  attributes: RankingAttributes,
) {
  const { sequences, length, stride, groups, blockSize, sharing } = attributes;
  checkBlocking(rules, length, stride);
  rules.positive('groups', groups);
  rules.positive('blockSize', blockSize);
  rules.positive('sharing', sharing);
  rules.divides('stride', 'blockSize', stride, blockSize);
  rules.divides('sharing', 'blockSize', sharing, blockSize);
  rules.finite('scale', attributes.scale);
  const dtype = rules.floats({ q, k, qRope, kRope });
  const [queries, heads, width] = rules.extents('q', q, 3);
  const [blocks, keyHeads] = rules.extents('k', k, 3);
  rules.shape('k', k, [blocks, keyHeads, width]);
  rules.divides('key heads', 'heads', keyHeads, heads);
  rules.divides('groups', 'heads', groups, heads);
  checkRotary(rules, { qRope, kRope }, { queries, heads, keys: blocks });
  rules.statistic('lse', lse, dtype);
  rules.shape('lse', lse, [queries, heads]);
  rules.rows('q', queries, sequences.queryRows);
  rules.rows('k', blocks, sequences.blockRows({ length, stride }));
  return dtype;
}
