import type { AttentionAttributes, AttentionOperands } from '@asa/core';
import {
  attend,
  attendBackward,
  shapeOf,
  total,
  type View,
} from './attention-tile';
import type { KernelContext, Kernels } from './context';

export const attentionKernels = (
  context: KernelContext,
): Kernels<'attention' | 'attentionBackward'> => ({
  attention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  attentionBackward: (inputs, outputs, attributes) =>
    attendBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

/** The query at position t sees keys max(0, t - window + 1) .. t. */
function viewOf(
  operands: AttentionOperands,
  { sequences, scale, window }: AttentionAttributes,
): View {
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const rows = sequences.maxQueries * unitHeads;
  return {
    kind: 'ATTENTION',
    sequences,
    scale,
    unitHeads,
    rows,
    keys: sequences.maxKeys,
    rowTiles: (tile) => Math.ceil(rows / tile),
    keyTiles: (tile) => Math.ceil(sequences.maxKeys / tile),
    keyRows: total(sequences.list.map(({ keyCount }) => keyCount)),
    // No position is that far: the kernel adds to it.
    window: Math.min(window ?? Number.POSITIVE_INFINITY, 2 ** 30),
  };
}
