import { blockCount, type CompressedAttentionAttributes } from '@asa/core';
import type { Kernels } from './operands';
import { attend, attendBackward, type Visibility } from './softmax-attention';

export const compressedAttentionKernels: Kernels<
  'compressedAttention' | 'compressedAttentionBackward'
> = {
  compressedAttention(inputs, outputs, attributes) {
    attend(inputs, outputs, visibility(attributes));
  },
  compressedAttentionBackward(inputs, outputs, attributes) {
    attendBackward(inputs, outputs, visibility(attributes));
  },
};

/** t sees block b iff b d + l - 1 <= t */
function visibility(attributes: CompressedAttentionAttributes): Visibility {
  return {
    sequences: attributes.sequences,
    scale: attributes.scale,
    groups: 1,
    see(keys, { blockStart }, position) {
      const visible = blockCount(position + 1, attributes);
      keys.add(blockStart, blockStart + visible);
    },
  };
}
