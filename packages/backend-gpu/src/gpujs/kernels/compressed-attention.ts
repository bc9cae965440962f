import { blockCount, type CompressedAttentionAttributes } from '@asa/core';
import { extent, type KernelContext, type Kernels } from './context';
import {
  attend,
  attendBackward,
  room,
  type Visibility,
} from './softmax-attention';

export const compressedAttentionKernels = (
  context: KernelContext,
): Kernels<'compressedAttention' | 'compressedAttentionBackward'> => ({
  compressedAttention(inputs, outputs, attributes) {
    const rows = extent(inputs.q, 0);
    attend(context, inputs, outputs, visibility(attributes, rows));
  },
  compressedAttentionBackward(inputs, outputs, attributes) {
    attendBackward(context, inputs, outputs, {
      ...visibility(attributes, extent(inputs.q, 0)),
      keys: queriesOf(attributes, extent(inputs.k, 0)),
    });
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

/** A block is seen from the query on at which it becomes whole. */
function queriesOf(
  attributes: CompressedAttentionAttributes,
  rows: number,
): Int32Array {
  const keys = new Int32Array(rows * 2);
  const { sequences, length, stride } = attributes;
  for (const { queryStart, keyCount, blockStart } of sequences.list) {
    const count = blockCount(keyCount, attributes);
    for (let b = 0; b < count; b++) {
      const first = queryStart + b * stride + length - 1;
      keys.set([first, queryStart + keyCount], (blockStart + b) * 2);
    }
  }
  return keys;
}
