import type {
  SelectedAttentionAttributes,
  SelectedAttentionOperands,
} from '@asa/core';
import { indices, type Kernels } from './operands';
import { attend, attendBackward, type Visibility } from './softmax-attention';

export const selectedAttentionKernels: Kernels<
  'selectedAttention' | 'selectedAttentionBackward'
> = {
  selectedAttention(inputs, outputs, attributes) {
    attend(inputs, outputs, visibility(inputs, attributes));
  },
  selectedAttentionBackward(inputs, outputs, attributes) {
    attendBackward(inputs, outputs, visibility(inputs, attributes));
  },
};

/** t sees the tokens j <= t of the blocks that leader(t) = r floor(t / r) chose */
function visibility(
  inputs: SelectedAttentionOperands,
  { sequences, scale, blockSize, sharing }: SelectedAttentionAttributes,
): Visibility {
  const lists = indices(inputs.indices);
  const [, groups = 0, count = 0] = inputs.indices.shape;
  return {
    sequences,
    scale,
    groups,
    see(keys, { keyStart, keyCount, queryCount, leaderStart }, t, group) {
      const first = Math.floor((keyCount - queryCount) / sharing);
      const leader = leaderStart + Math.floor(t / sharing) - first;
      const list = (leader * groups + group) * count;
      for (let i = list; i < list + count; i++) {
        const block = lists[i] as number;
        const from = block * blockSize;
        const to = Math.min(from + blockSize, t + 1);
        if (block >= 0) keys.add(keyStart + from, keyStart + to);
      }
    },
  };
}
