import {
  blockCount,
  type RankingAttributes,
  type RankingOperands,
  type SelectBlocksAttributes,
  type Sequence,
} from '@asa/core';
import { type Floats, floats, indices, type Kernels } from './operands';
import { dot } from './softmax-attention';

export const selectBlocksKernels: Kernels<'blockImportance' | 'selectBlocks'> =
  {
    blockImportance(inputs, outputs, attributes) {
      const importance = floats(outputs.importance);
      const [, groups = 0, blocks = 0] = outputs.importance.shape;
      importance.fill(0);
      forEachLeader(attributes, (sequence, t, query, row) => {
        if (query === undefined) return;
        for (let g = 0; g < groups; g++) {
          const P = importanceOf(inputs, attributes, sequence, t, query, g);
          importance.set(P, (row * groups + g) * blocks);
        }
      });
    },

    /** F, then the best others by (P descending, j ascending); ascending */
    selectBlocks(inputs, outputs, attributes) {
      const lists = indices(outputs.indices);
      const { groups, count } = attributes;
      const previous = inputs.previous && indices(inputs.previous);
      lists.fill(-1);
      forEachLeader(attributes, (sequence, t, query, row, s) => {
        for (let g = 0; g < groups; g++) {
          const to = (row * groups + g) * count;
          if (query !== undefined) {
            const P = importanceOf(inputs, attributes, sequence, t, query, g);
            lists.set(select(P, t, attributes), to);
          } else if (previous) {
            const from = (s * groups + g) * count;
            lists.set(previous.subarray(from, from + count), to);
          }
        }
      });
    },
  };

/**
 * Calls `body` for every leader that a sequence's queries have. `query` is its
 * row, or undefined where it stands before the first query.
 */
function forEachLeader(
  { sequences, sharing }: RankingAttributes,
  body: (
    sequence: Sequence,
    t: number,
    query: number | undefined,
    row: number,
    s: number,
  ) => void,
): void {
  sequences.list.forEach((sequence, s) => {
    const { queryStart, queryCount, keyCount, leaderStart } = sequence;
    const first = keyCount - queryCount;
    let row = leaderStart;
    const start = first - (first % sharing);
    for (let t = start; t < keyCount; t += sharing) {
      if (queryCount === 0) return;
      const query = t >= first ? queryStart + t - first : undefined;
      body(sequence, t, query, row++, s);
    }
  });
}

/**
 * p_i[b] = exp((q_i . k_b + qR_i . kR_b) scale - lse_i), b visible to t
 * P[j]   = sum over i in g, m in [0, l'/d), k in [0, l/d) of
 *          p_i[(l'/d) j + m - k], for the blocks j <= floor(t / l')
 */
function importanceOf(
  inputs: RankingOperands,
  attributes: RankingAttributes,
  { blockStart }: Sequence,
  t: number,
  query: number,
  group: number,
): Floats {
  const { length, stride, blockSize, groups, scale } = attributes;
  const visible = blockCount(t + 1, attributes);
  const p = new Float64Array(visible);
  const [, heads = 0] = inputs.q.shape;
  const lse = floats(inputs.lse);
  const members = heads / groups;
  for (let i = group * members; i < (group + 1) * members; i++) {
    for (let b = 0; b < visible; b++) {
      const s = score(inputs, query, i, blockStart + b) * scale;
      const norm = lse[query * heads + i] as number;
      p[b] = (p[b] as number) + Math.exp(s - norm);
    }
  }
  const P = new Float64Array(Math.floor(t / blockSize) + 1);
  for (let j = 0; j < P.length; j++) {
    for (let m = 0; m < blockSize / stride; m++) {
      for (let k = 0; k < length / stride; k++) {
        const b = (blockSize / stride) * j + m - k;
        if (b >= 0 && b < visible) P[j] = (P[j] as number) + (p[b] as number);
      }
    }
  }
  // Ranked as the type that scores have, so that ties are ties everywhere.
  return lse instanceof Float32Array ? Float32Array.from(P) : P;
}

function score(
  { q, k, qRope, kRope }: RankingOperands,
  query: number,
  head: number,
  block: number,
): number {
  const part = (a: Floats, b: Floats, heads: number, row: number, w: number) =>
    dot(a, (query * heads + head) * w, b, row * w, w);
  const [, heads = 0, width = 0] = q.shape;
  const [, keyHeads = 0] = k.shape;
  const keyHead = Math.floor(head / (heads / keyHeads));
  const row = block * keyHeads + keyHead;
  const content = part(floats(q), floats(k), heads, row, width);
  if (!qRope || !kRope) return content;
  const rotary = qRope.shape[2] ?? 0;
  return content + part(floats(qRope), floats(kRope), heads, block, rotary);
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
  others.sort((a, b) => (P[b] as number) - (P[a] as number) || a - b);
  const chosen = [...forced, ...others.slice(0, count - forced.length)];
  const list = new Int32Array(count).fill(-1);
  list.set(chosen.sort((a, b) => a - b));
  return list;
}
