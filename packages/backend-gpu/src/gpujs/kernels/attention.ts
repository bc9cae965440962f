import type { AttentionAttributes } from '@asa/core';
import { extent, type KernelContext, type Kernels } from './context';
import {
  attend,
  attendBackward,
  queriesOf,
  room,
  type Visibility,
} from './softmax-attention';

export const attentionKernels = (
  context: KernelContext,
): Kernels<'attention' | 'attentionBackward'> => ({
  attention(inputs, outputs, attributes) {
    const rows = extent(inputs.q, 0);
    attend(context, inputs, outputs, visibility(attributes, rows));
  },
  attentionBackward(inputs, outputs, attributes) {
    attendBackward(context, inputs, outputs, {
      ...visibility(attributes, extent(inputs.q, 0)),
      keys: queriesOf(attributes.sequences, extent(inputs.k, 0)),
    });
  },
});

/** t sees max(0, t - window + 1) .. t */
function visibility(
  { sequences, scale, window = sequences.maxKeys }: AttentionAttributes,
  count: number,
): Visibility {
  const rows = new Int32Array(count * 3);
  for (const { queryStart, queryCount, keyStart, keyCount } of sequences.list) {
    for (let i = 0; i < queryCount; i++) {
      const t = keyCount - queryCount + i;
      const first = Math.max(0, t - window + 1);
      rows.set([keyStart + first, t - first + 1], (queryStart + i) * 3);
    }
  }
  const slots = room(Math.min(window, sequences.maxKeys));
  return { kind: 'neighbours', values: {}, slots, scale, rows };
}
