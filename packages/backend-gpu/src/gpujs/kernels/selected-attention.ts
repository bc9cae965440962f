import type {
  SelectedAttentionAttributes,
  SelectedAttentionOperands,
} from '@asa/core';
import { extent, type KernelContext, type Kernels } from './context';
import {
  attend,
  attendBackward,
  queriesOf,
  type Visibility,
} from './softmax-attention';

export const selectedAttentionKernels = (
  context: KernelContext,
): Kernels<'selectedAttention' | 'selectedAttentionBackward'> => ({
  selectedAttention(inputs, outputs, attributes) {
    attend(context, inputs, outputs, visibility(inputs, attributes));
  },
  selectedAttentionBackward(inputs, outputs, attributes) {
    attendBackward(context, inputs, outputs, {
      ...visibility(inputs, attributes),
      keys: queriesOf(attributes.sequences, extent(inputs.k, 0)),
    });
  },
});

/** t sees the tokens j <= t of the blocks that leader(t) = r floor(t / r) chose */
function visibility(
  { q, indices }: SelectedAttentionOperands,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
): Visibility {
  const [, listGroups = 0, listLength = 0] = indices.shape;
  const count = extent(q, 0);
  const rows = new Int32Array(count * 3);
  // A row that belongs to no sequence stands before every token.
  for (let i = 0; i < count; i++) rows[i * 3 + 1] = -1;
  for (const sequence of sequences.list) {
    const { queryStart, queryCount, keyStart, keyCount } = sequence;
    const first = keyCount - queryCount;
    const before = Math.floor(first / sharing);
    for (let i = 0; i < queryCount; i++) {
      const leader = Math.floor((first + i) / sharing) - before;
      const list = sequence.leaderStart + leader;
      rows.set([keyStart, first + i, list], (queryStart + i) * 3);
    }
  }
  const values = { lists: indices, listGroups, listLength, blockSize };
  const slots = listLength * blockSize;
  return { kind: 'listed', values, slots, scale, rows };
}
