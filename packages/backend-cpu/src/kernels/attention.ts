import type { AttentionAttributes } from '@asa/core';
import type { Kernels } from './operands';
import { attend, attendBackward, type Visibility } from './softmax-attention';

export const attentionKernels: Kernels<'attention' | 'attentionBackward'> = {
  attention(inputs, outputs, attributes) {
    attend(inputs, outputs, visibility(attributes));
  },
  attentionBackward(inputs, outputs, attributes) {
    attendBackward(inputs, outputs, visibility(attributes));
  },
};

/** t sees max(0, t - window + 1) .. t */
function visibility({
  sequences,
  scale,
  window = Number.POSITIVE_INFINITY,
}: AttentionAttributes): Visibility {
  return {
    sequences,
    scale,
    groups: 1,
    see(keys, { keyStart }, position) {
      const first = Math.max(0, position - window + 1);
      keys.add(keyStart + first, keyStart + position + 1);
    },
  };
}
