import {
  leaderCount,
  type SelectedAttentionAttributes,
  type SelectedAttentionOperands,
} from '@asa/core';
import { input } from '../launch';
import {
  attend,
  attendBackward,
  covers,
  greatestCommonDivisor,
  shapeOf,
  type View,
} from './attention-tile';
import { extent, type KernelContext, type Kernels } from './context';

export const selectedAttentionKernels = (
  context: KernelContext,
): Kernels<'selectedAttention' | 'selectedAttentionBackward'> => ({
  selectedAttention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  selectedAttentionBackward: (inputs, outputs, attributes) =>
    attendBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

/** Leaders that are asked at a time whether they chose a block: a thread each. */
const ASKED = 256;

/**
 * The query at position t sees the tokens j <= t of its leader's blocks. A tile
 * is a leader's r queries by the heads that share its list and keys.
 */
function viewOf(
  operands: SelectedAttentionOperands,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
): View {
  const { indices, k } = operands;
  const { heads, keyHeads } = shapeOf(operands);
  const groups = extent(indices, 1);
  const unitHeads = greatestCommonDivisor(heads / groups, heads / keyHeads);
  const rows = sharing * unitHeads;
  const leaders = Math.max(
    0,
    ...sequences.list.map(({ keyCount, queryCount }) =>
      leaderCount(keyCount - queryCount, queryCount, sharing),
    ),
  );
  const keys = blockSize <= 16 ? 16 : 32;
  const parts = Math.ceil(blockSize / keys);
  const counts = sequences.list.map(({ keyCount }) => keyCount);
  return {
    name: 'selectedAttention',
    sequences,
    scale,
    constants: {
      BLOCK: blockSize,
      SHARING: sharing,
      GL: groups,
      COUNT: extent(indices, 2),
      PARTS: parts,
    },
    uniforms: {},
    bindings: { indices: input(indices) },
    unitHeads,
    declarations: `
fn listOf(s: Sequence, leader: u32, list: u32) -> u32 {
  return ((s.leaderStart + leader) * GL + list) * COUNT;
}
fn selectedKey(s: Sequence, list: u32, slot: u32) -> i32 {
  let block = indices[list + slot / BLOCK];
  let position = block * i32(BLOCK) + i32(slot % BLOCK);
  return select(-1, position, block >= 0 && position < i32(s.keyCount));
}
var<workgroup> chosen: array<u32, ${ASKED}>;
var<workgroup> before: array<u32, ${ASKED}>;`,
    keyStart: 's.keyStart',
    coversKeys: covers(counts, extent(k, 0)),
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
let list = listOf(s, leader, head0 / (H / GL));
let first = 0u;
let end = COUNT * BLOCK;`,
      row: `let rho = group.x % tilesPerLeader * M + tid;
  let position = leaderAt + rho / HT;
  let member = rho % HT;
  let isRow = rho < SHARING * HT && position >= past && position < s.keyCount;
  let query = max(position, past) - past;`,
      keyAt: 'selectedKey(s, list, slot)',
    },
    backward: {
      keys,
      tiles: Math.ceil(sequences.maxKeys / blockSize) * parts,
      range: `let block = group.x / PARTS;
let firstKey = block * BLOCK + group.x % PARTS * N;
let endKey = min(min(firstKey + N, (block + 1u) * BLOCK), s.keyCount);`,
      // The inverse index, block to leaders, made where it is used: every
      // thread asks one leader, and a running count puts those that chose the
      // block side by side, in order.
      loop: (walk) => `let leaders = (s.queryCount + SHARING - 1u) / SHARING;
for (var unit = 0u; unit < H / GK / HT; unit++) {
  let head0 = keyHead * (H / GK) + unit * HT;
  for (var asked = block * BLOCK / SHARING; asked < leaders; asked += ${ASKED}u) {
    let leader = asked + tid;
    var found = 0u;
    if (leader < leaders) {
      let list = listOf(s, leader, head0 / (H / GL));
      for (var n = 0u; n < COUNT; n++) {
        if (indices[list + n] == i32(block)) { found = 1u; }
      }
    }
    workgroupBarrier();
    before[tid] = found;
    for (var reach = 1u; reach < ${ASKED}u; reach *= 2u) {
      workgroupBarrier();
      var earlier = 0u;
      if (tid >= reach) { earlier = before[tid - reach]; }
      workgroupBarrier();
      before[tid] += earlier;
    }
    if (found == 1u) { chosen[before[tid] - 1u] = leader; }
    let total = workgroupUniformLoad(&before[${ASKED - 1}u]) * SHARING * HT;
    ${walk}
  }
}`,
      row: `let leader = chosen[min(rho / (SHARING * HT), ${ASKED - 1}u)];
  let own = leader * SHARING + rho % (SHARING * HT) / HT;
  // The last leader may have fewer queries.
  let isRow = rho < total && own < s.queryCount;
  let query = min(own, s.queryCount - 1u);
  let member = rho % HT;`,
    },
  };
}
