import { blockCount, type CompressedAttentionAttributes } from '@asa/core';
import {
  attend,
  attendBackward,
  covers,
  shapeOf,
  type View,
} from './attention-tile';
import { extent, type KernelContext, type Kernels } from './context';

export const compressedAttentionKernels = (
  context: KernelContext,
): Kernels<'compressedAttention' | 'compressedAttentionBackward'> => ({
  compressedAttention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  compressedAttentionBackward: (inputs, outputs, attributes) =>
    attendBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

const KEYS = 32;

/** The query at position t sees block b iff b d + l - 1 <= t. */
function viewOf(
  operands: Parameters<typeof shapeOf>[0],
  attributes: CompressedAttentionAttributes,
): View {
  const { sequences, scale, length, stride } = attributes;
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const rows = sequences.maxQueries * unitHeads;
  const blocks = sequences.list.map(({ keyCount }) =>
    blockCount(keyCount, attributes),
  );
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
    coversKeys: covers(blocks, extent(operands.k, 0)),
    sees: { first: '0', last: 'i32(blocksOf(t + 1u)) - 1' },
    forward: {
      rows,
      tiles: (tile) => Math.ceil(rows / tile),
      row: `let rho = group.x * M + tid;
  let query = rho / HT;
  let member = rho % HT;
  let isRow = query < s.queryCount;`,
      range: `if (group.x * M / HT >= s.queryCount) { return; }
let lastQuery = min((group.x * M + M - 1u) / HT, s.queryCount - 1u);
let first = 0u;
let end = blocksOf(s.keyCount - s.queryCount + lastQuery + 1u);`,
      keyAt: 'i32(slot)',
    },
    backward: {
      keys: KEYS,
      tiles: Math.ceil(blockCount(sequences.maxKeys, attributes) / KEYS),
      range: `let firstKey = group.x * N;
let endKey = min(firstKey + N, blocksOf(s.keyCount));`,
      loop: (walk) => `let head0 = keyHead * HT;
let firstQuery = min(firstKey * STRIDE + LENGTH - 1u, s.queryCount);
let total = (s.queryCount - firstQuery) * HT;
${walk}`,
      row: `let query = firstQuery + rho / HT;
  let member = rho % HT;
  let isRow = rho < total;`,
    },
  };
}

/** NC of maths.md §3: the whole blocks of so many tokens. */
export const blocksOf = `fn blocksOf(tokens: u32) -> u32 {
  if (tokens < LENGTH) { return 0u; }
  return (tokens - LENGTH) / STRIDE + 1u;
}`;
