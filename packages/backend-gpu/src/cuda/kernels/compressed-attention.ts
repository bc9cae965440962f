import {
  type AttentionOperands,
  blockCount,
  type CompressedAttentionAttributes,
} from '@asa/core';
import { attend } from './attention-forward';
import { denseTiles, shapeOf, type View } from './attention-tile';
import type { KernelContext, Kernels } from './context';
import { denseBackward } from './dense-backward';

export const compressedAttentionKernels = (
  context: KernelContext,
): Kernels<'compressedAttention' | 'compressedAttentionBackward'> => ({
  compressedAttention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  compressedAttentionBackward: (inputs, outputs, attributes) =>
    denseBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

/** The query at position t sees block b iff b d + l - 1 <= t. */
function viewOf(
  operands: AttentionOperands,
  attributes: CompressedAttentionAttributes,
): View {
  const { sequences, scale, length, stride } = attributes;
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  return {
    kind: 'COMPRESSED',
    sequences,
    scale,
    unitHeads,
    ...denseTiles(sequences, unitHeads, (tokens) =>
      blockCount(tokens, attributes),
    ),
    length,
    stride,
  };
}
