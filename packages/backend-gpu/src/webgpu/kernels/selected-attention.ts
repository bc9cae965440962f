import type {
  SelectedAttentionAttributes,
  SelectedAttentionOperands,
} from '@asa/core';
import { input } from '../launch';
import { attend, attendBackward, shapeOf } from './attention-tile';
import {
  covers,
  greatestCommonDivisor,
  type KeyView,
  keysOfTile,
  type View,
} from './attention-view';
import { extent, type KernelContext, type Kernels } from './context';
import { type LeadersOfBlocks, leadersOfBlocks } from './leaders-of-blocks';

export const selectedAttentionKernels = (
  context: KernelContext,
): Kernels<'selectedAttention' | 'selectedAttentionBackward'> => ({
  selectedAttention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),

  selectedAttentionBackward(inputs, outputs, attributes) {
    const { indices } = inputs;
    const { sharing } = attributes;
    const view = viewOf(inputs, attributes);
    const leaders = leadersOfBlocks(context, {
      indices,
      ...attributes,
      rowsPerLeader: sharing * view.unitHeads,
    });
    const keyView = keyViewOf(context, inputs, attributes, leaders);
    attendBackward(context, inputs, outputs, view, keyView);
    leaders.free();
  },
});

/**
 * The query at position t sees the tokens j <= t of its leader's blocks. A tile
 * is a leader's r queries by the heads that share its list and keys.
 */
function viewOf(
  operands: SelectedAttentionOperands,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
): View {
  const { indices } = operands;
  const { heads, keyHeads } = shapeOf(operands);
  const groups = extent(indices, 1);
  const unitHeads = greatestCommonDivisor(heads / groups, heads / keyHeads);
  const rows = sharing * unitHeads;
  const leaders = Math.max(0, ...sequences.leaderCounts(sharing));
  return {
    name: 'selectedAttention',
    sequences,
    scale,
    constants: {
      BLOCK: blockSize,
      SHARING: sharing,
      GL: groups,
      COUNT: extent(indices, 2),
    },
    uniforms: {},
    bindings: { indices: input(indices) },
    unitHeads,
    declarations: `
fn selectedKey(s: Sequence, list: u32, slot: u32) -> i32 {
  let block = indices[list + slot / BLOCK];
  let position = block * i32(BLOCK) + i32(slot % BLOCK);
  return select(-1, position, block >= 0 && position < i32(s.keyCount));
}`,
    keyStart: 's.keyStart',
    sees: { first: '0', last: 'i32(t)' },
    forward: {
      rows,
      tiles: (tile) => leaders * Math.ceil(rows / tile),
      range: `let past = s.keyCount - s.queryCount;
let tilesPerLeader = (SHARING * HT + M - 1u) / M;
let leader = group.x / tilesPerLeader;
// Position of the leader's first query; it may lie before the first one here.
let leaderAt = (past / SHARING + leader) * SHARING;
if (leaderAt >= s.keyCount) { return; }
let list = ((s.leaderStart + leader) * GL + head0 / (H / GL)) * COUNT;
let first = 0u;
let end = COUNT * BLOCK;`,
      row: `let rho = group.x % tilesPerLeader * M + tid;
  let position = leaderAt + rho / HT;
  let member = rho % HT;
  let isRow = rho < SHARING * HT && position >= past && position < s.keyCount;
  let query = min(max(position, past), s.keyCount - 1u) - past;`,
      keyAt: 'selectedKey(s, list, slot)',
    },
  };
}

/** A tile is (a part of) a block, and some of the leaders that chose it. */
function keyViewOf(
  context: KernelContext,
  operands: SelectedAttentionOperands,
  { sequences, blockSize, sharing }: SelectedAttentionAttributes,
  leaders: LeadersOfBlocks,
): KeyView {
  const { indices, k } = operands;
  const keys = keysOfTile(context, operands, shapeOf(operands), blockSize);
  const tilesOfBlock = Math.ceil(blockSize / keys);
  const { items, declarations, bindings, uniforms } = leaders;
  const counts = sequences.list.map(({ keyCount }) => keyCount);
  return {
    keys,
    tiles: items * tilesOfBlock,
    bindings,
    constants: {
      BLOCK: blockSize,
      SHARING: sharing,
      GL: extent(indices, 1),
    },
    uniforms,
    declarations,
    coversKeys: covers(counts, extent(k, 0)),
    most: sequences.maxKeys,
    extent: 's.keyCount',
    range: `let list = group.z * GL + head0 / (H / GL);
let item = group.x % u.items;
if (item >= itemCount(list)) { return; }
let block = itemBlock(list, item);
let firstKey = block * BLOCK + group.x / u.items * N;
let endKey = min(min(firstKey + N, (block + 1u) * BLOCK), s.keyCount);
let start = firstLeader(list, block)
  + (item - firstItem(list, block)) * u.perItem;
let stop = min(start + u.perItem, firstLeader(list, block + 1u));
let firstRow = 0u;
let endRow = (stop - start) * SHARING * HT;
let slot = group.z * groups.x + group.x;`,
    row: `let leader = leaderAt(list, min(start + rho / (SHARING * HT), stop - 1u));
  let own = leader * SHARING + rho % (SHARING * HT) / HT;
  // The last leader may have fewer queries.
  let isRow = rho < endRow && own < s.queryCount;
  let query = min(own, s.queryCount - 1u);
  let member = rho % HT;`,
    parts: {
      slots: items * tilesOfBlock * sequences.count,
      find: `let list = group.z * GL + unit * HT / (H / GL);
let block = position / BLOCK;
let row = group.z * u.tiles + position % BLOCK / N * u.items;
let firstSlot = row + firstItem(list, block);
let endSlot = row + firstItem(list, block + 1u);
let n = position % BLOCK % N;`,
    },
  };
}
