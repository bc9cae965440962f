import {
  blockCount,
  type RankingAttributes,
  type RankingOperands,
  type Sequence,
} from '@asa/core';
import type { Place } from '../memory';
import { program } from '../program';
import { extent, type KernelContext, type Kernels } from './context';
import {
  columns,
  forEachPiece,
  room,
  scores,
  shares,
} from './softmax-attention';

/**
 * P[j] = sum over i in g, m in [0, l'/d), k in [0, l/d) of
 *        p_i[(l'/d) j + m - k]
 * Threads: block, group, leader of the piece.
 */
const importance = program(
  'blockImportance',
  {
    arrays: ['p', 'table'],
    integers: ['heads', 'members', 'slots', 'perBlock', 'overlap'],
  },
  `const visible = table[this.thread.z * ${columns} + 3];
  let sum = 0;
  for (let i = 0; i < members; i++) {
    for (let m = 0; m < perBlock; m++) {
      for (let k = 0; k < overlap; k++) {
        const b = this.thread.x * perBlock + m - k;
        if (b >= 0 && b < visible) {
          sum += p[(this.thread.z * heads + this.thread.y * members + i)
            * slots + Math.floor(b)];
        }
      }
    }
  }
  return sum;`,
);

/**
 * 1 for the blocks of a leader's list: the forced ones, and the best others by
 * (P descending, j ascending). Threads: block, group, leader.
 */
const chosen = program(
  'chosenBlocks',
  {
    arrays: ['P', 'leaders'],
    integers: ['groups', 'blocks', 'count', 'initial', 'local'],
  },
  `const own = leaders[this.thread.z * 3 + 1];
  const firstLocal = own - local + 1;
  if (own < 0 || this.thread.x > own) { return 0; }
  if (this.thread.x < initial || this.thread.x >= firstLocal) { return 1; }
  const value = P[(this.thread.z * groups + this.thread.y) * blocks
    + this.thread.x];
  let before = 0;
  for (let j = 0; j <= own; j++) {
    if (j < initial || j >= firstLocal) {
      before += 1;
    } else {
      const other = P[(this.thread.z * groups + this.thread.y) * blocks + j];
      if (other > value) { before += 1; }
      if (other === value && j < this.thread.x) { before += 1; }
    }
    if (before >= count) { return 0; }
  }
  return 1;`,
);

/**
 * The list: its blocks, ascending, then -1; an earlier leader's comes from
 * `previous`. Threads: place in the list, group, leader.
 */
const listOf = program(
  'selectBlocks',
  {
    arrays: ['flags', 'leaders', 'previous'],
    integers: ['groups', 'blocks', 'count'],
  },
  `const earlier = leaders[this.thread.z * 3 + 2];
  if (earlier >= 0) {
    return previous[(Math.floor(earlier) * groups + this.thread.y) * count
      + this.thread.x];
  }
  let seen = 0;
  for (let j = 0; j < blocks; j++) {
    if (flags[(this.thread.z * groups + this.thread.y) * blocks + j] > 0) {
      if (seen === this.thread.x) { return j; }
      seen += 1;
    }
  }
  return -1;`,
);

export const selectBlocksKernels = (
  context: KernelContext,
): Kernels<'blockImportance' | 'selectBlocks'> => ({
  blockImportance(inputs, outputs, attributes) {
    const [, , blocks = 0] = outputs.importance.shape;
    rank(context, inputs, attributes, blocks, outputs.importance);
  },

  /** F, then the best others by (P descending, j ascending); ascending */
  selectBlocks(inputs, { indices }, attributes) {
    const [rows = 0, groups = 0, count = 0] = indices.shape;
    const { sequences, blockSize, initial, local } = attributes;
    const blocks = Math.ceil(sequences.maxKeys / blockSize);
    const P = context.scratch(rows * groups * blocks);
    rank(context, inputs, attributes, blocks, P);
    const leaders = context.table(leaderTable(rows, attributes));
    const flags = context.scratch(P.elements);
    const sizes = { groups, blocks, count };
    context.run(chosen, { P, leaders, ...sizes, initial, local }, flags, [
      blocks,
      groups,
      rows,
    ]);
    // Where no leader is an earlier one, nothing is read of it.
    const { previous = leaders } = inputs;
    const values = { flags, leaders, previous, ...sizes };
    context.run(listOf, values, indices, [count, groups, rows]);
    for (const memory of [P, leaders, flags]) context.release(memory);
  },
});

interface Leader {
  readonly sequence: Sequence;
  /** The sequence's number. */
  readonly s: number;
  /** Position in the sequence. */
  readonly t: number;
  /** Row of its query; -1 where it stands before the first query. */
  readonly query: number;
  /** Row of its list. */
  readonly row: number;
}

/** Every leader of the queries: leader(t) = r floor(t / r) */
function forEachLeader(
  { sequences, sharing }: RankingAttributes,
  visit: (leader: Leader) => void,
): void {
  sequences.list.forEach((sequence, s) => {
    const { queryStart, queryCount, keyCount, leaderStart } = sequence;
    if (queryCount === 0) return;
    const first = keyCount - queryCount;
    let row = leaderStart;
    for (let t = first - (first % sharing); t < keyCount; t += sharing) {
      const query = t < first ? -1 : queryStart + t - first;
      visit({ sequence, s, t, query, row });
      row += 1;
    }
  });
}

/**
 * Of each leader row: its query, its own block (-1 without a query), and the
 * sequence whose earlier list it takes, or -1; `[L, 3]`.
 */
function leaderTable(rows: number, attributes: RankingAttributes): Int32Array {
  const table = new Int32Array(rows * 3).fill(-1);
  forEachLeader(attributes, ({ s, t, query, row }) => {
    const own = query < 0 ? -1 : Math.floor(t / attributes.blockSize);
    table.set([query, own, query < 0 ? s : -1], row * 3);
  });
  return table;
}

/** The leaders as queries that see the blocks which are whole before them. */
function scoreTable(rows: number, attributes: RankingAttributes): Int32Array {
  const table = new Int32Array(rows * columns);
  for (let row = 0; row < rows; row++) table[row * columns] = -1;
  forEachLeader(attributes, ({ sequence, t, query, row }) => {
    if (query < 0) return;
    const visible = blockCount(t + 1, attributes);
    const values = [query, query, sequence.blockStart, visible];
    table.set(values, row * columns);
  });
  return table;
}

/** `[L, G, NS]`: 0 beyond what a leader sees, and where it has no query. */
function rank(
  context: KernelContext,
  { q, k, qRope, kRope, lse }: RankingOperands,
  attributes: RankingAttributes,
  blocks: number,
  target: Place,
): void {
  const { sequences, length, stride, blockSize, groups, scale } = attributes;
  const heads = extent(q, 1);
  const rows = sequences.leaderRows(attributes.sharing);
  const slots = room(blockCount(sequences.maxKeys, attributes));
  const seen = { kind: 'neighbours', values: {}, slots, scale } as const;
  const all = scoreTable(rows, attributes);
  const sizes = {
    heads,
    members: heads / groups,
    slots,
    perBlock: blockSize / stride,
    overlap: length / stride,
  };
  const width = groups * blocks;
  forEachPiece(rows, heads * slots, (from, count) => {
    const part = all.subarray(from * columns, (from + count) * columns);
    const table = context.table(part);
    const s = scores(context, { q, k, qRope, kRope }, seen, table);
    const p = shares(context, s, lse, heads, seen, table);
    const found = context.scratch(count * width);
    const values = { p, table, ...sizes };
    context.run(importance, values, found, [blocks, groups, count]);
    context.copyElements(found, 0, target, from * width, found.elements);
    for (const memory of [table, p, found]) context.release(memory);
  });
}
