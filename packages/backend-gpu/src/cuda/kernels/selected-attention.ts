import type {
  SelectedAttentionAttributes,
  SelectedAttentionOperands,
} from '@asa/core';
import { attendByWalks } from './attention-forward';
import { greatestCommonDivisor, shapeOf, total } from './attention-tile';
import { extent, type KernelContext, type Kernels } from './context';
import { attendByBlocks, forwardBlocksTile } from './forward-by-blocks';
import { attendByUnion, unionTile } from './forward-by-union';
import type { SelectedView } from './gradient-parts';
import { decodeOnHopper } from './hopper-decode';
import { attendMasked, maskedForward } from './masked-attention';
import { selectedBackward } from './selected-backward';

export const selectedAttentionKernels = (
  context: KernelContext,
): Kernels<'selectedAttention' | 'selectedAttentionBackward'> => ({
  selectedAttention(inputs, outputs, attributes) {
    const view = viewOf(inputs, attributes);
    if (decodeOnHopper(context, inputs, outputs, view)) return;
    const blocks = forwardBlocksTile(inputs, view, context.facts);
    const union = blocks ? undefined : unionTile(inputs, view, context.facts);
    const masked =
      blocks || union ? undefined : maskedForward(inputs, view, context.facts);
    if (blocks) attendByBlocks(context, inputs, outputs, view, blocks);
    else if (union) attendByUnion(context, inputs, outputs, view, union);
    else if (masked) attendMasked(context, inputs, outputs, masked);
    else attendByWalks(context, inputs, outputs, view);
  },
  selectedAttentionBackward: (inputs, outputs, attributes) =>
    selectedBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

/**
 * The query at position t sees the tokens j <= t of its leader's blocks. A tile
 * is a leader's r queries by the heads that share its list and keys.
 */
function viewOf(
  operands: SelectedAttentionOperands,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
): SelectedView {
  const { indices } = operands;
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = greatestCommonDivisor(
    heads / extent(indices, 1),
    heads / keyHeads,
  );
  const { maxQueries, keyRoom } = sequences;
  const rows = sharing * unitHeads;
  const leaders = Math.max(0, ...sequences.leaderCounts(sharing));
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  return {
    kind: 'SELECTED',
    sequences,
    scale,
    unitHeads,
    rows: Math.min(sharing, maxQueries) * unitHeads,
    keys: blockSize,
    walk: Math.min(extent(indices, 2) * blockSize, keyRoom),
    rowTiles: (tile) => leaders * Math.ceil(rows / tile),
    keyTiles: (tile) => blocks * Math.ceil(blockSize / tile),
    keyRows: total(sequences.list.map(({ keyCount }) => keyCount)),
    indices,
    blockSize,
    sharing,
  };
}
