import type { AttentionAttributes, AttentionOperands } from '@asa/core';
import { attend } from './attention-forward';
import { denseTiles, shapeOf, type View } from './attention-tile';
import type { KernelContext, Kernels } from './context';
import { denseBackward } from './dense-backward';

export const attentionKernels = (
  context: KernelContext,
): Kernels<'attention' | 'attentionBackward'> => ({
  attention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  attentionBackward: (inputs, outputs, attributes) =>
    denseBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

/** The query at position t sees keys max(0, t - window + 1) .. t. */
function viewOf(
  operands: AttentionOperands,
  { sequences, scale, window }: AttentionAttributes,
): View {
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const { maxQueries, keyRoom } = sequences;
  // No position is that far: the kernel adds to it.
  const reach = Math.min(window ?? Number.POSITIVE_INFINITY, 2 ** 30);
  return {
    kind: 'ATTENTION',
    sequences,
    scale,
    unitHeads,
    ...denseTiles(sequences, unitHeads),
    walk: Math.min(keyRoom, reach + maxQueries - 1),
    window: reach,
  };
}
