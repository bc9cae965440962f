import {
  blockCount,
  type RankingAttributes,
  type RankingOperands,
  type SelectBlocksAttributes,
  type Sequence,
} from '@asa/core';
import { type Floats, floats, indices, type Kernels } from './operands';
import { Operands, VisibleKeys } from './softmax-attention';

export const selectBlocksKernels: Kernels<'blockImportance' | 'selectBlocks'> =
  {
    blockImportance(inputs, outputs, attributes) {
      const importance = floats(outputs.importance);
      const [, groups = 0, blocks = 0] = outputs.importance.shape;
      const importanceOf = ranking(inputs, attributes);
      importance.fill(0);
      forEachLeader(attributes, ({ sequence, t, query, row }) => {
        if (query === undefined) return;
        for (let g = 0; g < groups; g++) {
          const P = importanceOf(sequence, t, query, g);
          importance.set(P, (row * groups + g) * blocks);
        }
      });
    },

    /** F, then the best others by (P descending, j ascending); ascending */
    selectBlocks(inputs, outputs, attributes) {
      const lists = indices(outputs.indices);
      const { groups, count } = attributes;
      const previous = inputs.previous && indices(inputs.previous);
      const importanceOf = ranking(inputs, attributes);
      lists.fill(-1);
      forEachLeader(attributes, ({ sequence, s, t, query, row }) => {
        for (let g = 0; g < groups; g++) {
          const to = (row * groups + g) * count;
          if (query !== undefined) {
            const P = importanceOf(sequence, t, query, g);
            lists.set(select(P, t, attributes), to);
          } else if (previous) {
            const from = (s * groups + g) * count;
            lists.set(previous.subarray(from, from + count), to);
          }
        }
      });
    },
  };

interface Leader {
  readonly sequence: Sequence;
  /** The sequence's number. */
  readonly s: number;
  /** Position in the sequence. */
  readonly t: number;
  /** Row of its query; none where it stands before the first query. */
  readonly query: number | undefined;
  /** Row of its list. */
  readonly row: number;
}

/** Every leader of the queries: leader(t) = r floor(t / r) */
function forEachLeader(
  { sequences, sharing }: RankingAttributes,
  body: (leader: Leader) => void,
): void {
  sequences.list.forEach((sequence, s) => {
    const { queryStart, queryCount, keyCount, leaderStart } = sequence;
    if (queryCount === 0) return;
    const first = keyCount - queryCount;
    let row = leaderStart;
    for (let t = first - (first % sharing); t < keyCount; t += sharing) {
      const query = t < first ? undefined : queryStart + t - first;
      body({ sequence, s, t, query, row });
      row += 1;
    }
  });
}

/**
 * p_i[b] = exp((q_i . k_b + qR_i . kR_b) scale - lse_i), b visible to t
 * P[j]   = sum over i in g, m in [0, l'/d), k in [0, l/d) of
 *          p_i[(l'/d) j + m - k], for the blocks j <= floor(t / l')
 */
function ranking(
  inputs: RankingOperands,
  attributes: RankingAttributes,
): (sequence: Sequence, t: number, query: number, group: number) => Floats {
  const { length, stride, blockSize, groups, scale } = attributes;
  const operands = new Operands({ ...inputs, v: inputs.k });
  const lse = floats(inputs.lse);
  const members = operands.heads / groups;
  const visible = new VisibleKeys();

  return ({ blockStart }, t, query, group) => {
    visible.count = 0;
    visible.add(blockStart, blockStart + blockCount(t + 1, attributes));
    const p = new Float64Array(visible.count);
    for (let i = group * members; i < (group + 1) * members; i++) {
      const scores = operands.scores(query, i, visible, scale);
      const norm = lse[query * operands.heads + i] as number;
      for (let b = 0; b < p.length; b++) {
        p[b] = (p[b] as number) + Math.exp((scores[b] as number) - norm);
      }
    }
    const P = new Float64Array(Math.floor(t / blockSize) + 1);
    for (let j = 0; j < P.length; j++) {
      for (let m = 0; m < blockSize / stride; m++) {
        for (let k = 0; k < length / stride; k++) {
          // Out of range is 0.
          P[j] = (P[j] as number) + (p[(blockSize / stride) * j + m - k] ?? 0);
        }
      }
    }
    // Ranked as the type that scores have, so that ties are ties everywhere.
    return lse instanceof Float32Array ? Float32Array.from(P) : P;
  };
}

/** The list of one leader and group, `[n]`. */
function select(
  P: Floats,
  t: number,
  { blockSize, count, initial, local }: SelectBlocksAttributes,
): Int32Array {
  const own = Math.floor(t / blockSize);
  const isForced = (j: number) => j < initial || j > own - local;
  const all = Array.from({ length: own + 1 }, (_, j) => j);
  const forced = all.filter(isForced);
  const others = all.filter((j) => !isForced(j));
  // The sort is stable: blocks that tie stay in ascending order.
  others.sort((a, b) => (P[b] as number) - (P[a] as number));
  const chosen = [...forced, ...others.slice(0, count - forced.length)];
  const list = new Int32Array(count).fill(-1);
  list.set(chosen.sort((a, b) => a - b));
  return list;
}
