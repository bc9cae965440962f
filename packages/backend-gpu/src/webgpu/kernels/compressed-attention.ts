import {
  type AttentionOperands,
  blockCount,
  type CompressedAttentionAttributes,
} from '@asa/core';
import { attend, attendBackward, shapeOf } from './attention-tile';
import {
  covers,
  type KeyView,
  keysOfQueries,
  keysOfTile,
  type View,
} from './attention-view';
import { extent, type KernelContext, type Kernels } from './context';

export const compressedAttentionKernels = (
  context: KernelContext,
): Kernels<'compressedAttention' | 'compressedAttentionBackward'> => ({
  compressedAttention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  compressedAttentionBackward: (inputs, outputs, attributes) =>
    attendBackward(
      context,
      inputs,
      outputs,
      viewOf(inputs, attributes),
      keyViewOf(context, inputs, attributes),
    ),
});

/** The query at position t sees block b iff b d + l - 1 <= t. */
function viewOf(
  operands: AttentionOperands,
  { sequences, scale, length, stride }: CompressedAttentionAttributes,
): View {
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const rows = sequences.maxQueries * unitHeads;
  return {
    name: 'compressedAttention',
    sequences,
    scale,
    constants: { LENGTH: length, STRIDE: stride },
    uniforms: {},
    bindings: {},
    unitHeads,
    declarations: blocksOf,
    keyStart: 's.blockStart',
    sees: { first: '0', last: 'i32(blocksOf(t + 1u)) - 1' },
    forward: {
      rows,
      tiles: (tile) => Math.ceil(rows / tile),
      row: `let rho = tile * M + tid;
  let query = rho / HT;
  let member = rho % HT;
  let isRow = query < s.queryCount;`,
      // The last queries see most: their tiles start first.
      range: `let tile = groups.x - 1u - group.x;
if (tile * M / HT >= s.queryCount) { return; }
let lastQuery = min((tile * M + M - 1u) / HT, s.queryCount - 1u);
let first = 0u;
let end = blocksOf(s.keyCount - s.queryCount + lastQuery + 1u);`,
      keyAt: 'i32(slot)',
    },
  };
}

function keyViewOf(
  context: KernelContext,
  operands: AttentionOperands,
  attributes: CompressedAttentionAttributes,
): KeyView {
  const { sequences } = attributes;
  const shape = shapeOf(operands);
  const { heads, keyHeads } = shape;
  const most = blockCount(sequences.maxKeys, attributes);
  const keys = keysOfTile(context, operands, shape, most);
  const blocks = sequences.list.map(({ keyCount }) =>
    blockCount(keyCount, attributes),
  );
  return {
    ...keysOfQueries({
      keys,
      most,
      units: keyHeads,
      sequences: sequences.count,
      rows: (sequences.maxQueries * heads) / keyHeads,
      text: `let firstKey = tile * N;
let endKey = min(firstKey + N, blocksOf(s.keyCount));
let firstQuery = min(firstKey * STRIDE + LENGTH - 1u, s.queryCount);
let endQuery = s.queryCount;`,
    }),
    bindings: {},
    uniforms: {},
    declarations: blocksOf,
    coversKeys: covers(blocks, extent(operands.k, 0)),
    most,
    extent: 'blocksOf(s.keyCount)',
  };
}

/** NC of maths.md §3: the whole blocks of so many tokens. */
export const blocksOf = `fn blocksOf(tokens: u32) -> u32 {
  if (tokens < LENGTH) { return 0u; }
  return (tokens - LENGTH) / STRIDE + 1u;
}`;
