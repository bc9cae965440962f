import { blockCount, type CompressedAttentionAttributes } from '@asa/core';
import { extent, type KernelContext, type Kernels } from './context';
import { attend, room, type Visibility } from './softmax-attention';

export const compressedAttentionKernels = (
  context: KernelContext,
): Kernels<'compressedAttention'> => ({
  compressedAttention(inputs, outputs, attributes) {
    const rows = extent(inputs.q, 0);
    attend(context, inputs, outputs, visibility(attributes, rows));
  },
});

/** t sees block b iff b d + l - 1 <= t */
function visibility(
  attributes: CompressedAttentionAttributes,
  count: number,
): Visibility {
  const { sequences, scale } = attributes;
  const rows = new Int32Array(count * 3);
  for (const sequence of sequences.list) {
    const { queryStart, queryCount, keyCount, blockStart } = sequence;
    for (let i = 0; i < queryCount; i++) {
      const visible = blockCount(keyCount - queryCount + i + 1, attributes);
      rows.set([blockStart, visible], (queryStart + i) * 3);
    }
  }
  const slots = room(blockCount(sequences.maxKeys, attributes));
  return { kind: 'neighbours', values: {}, slots, scale, rows };
}
