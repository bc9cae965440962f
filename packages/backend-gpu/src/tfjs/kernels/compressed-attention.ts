import { type BlockAttributes, blockCount, type Sequence } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';
import {
  denseAttention,
  denseAttentionBackward,
  type Keys,
} from './dense-attention';

export const compressedAttentionBodies: Bodies<
  'compressedAttention' | 'compressedAttentionBackward'
> = {
  compressedAttention: (inputs, attributes) =>
    denseAttention(
      inputs,
      attributes.sequences.list,
      attributes.scale,
      (sequence) => blocksOf(sequence, attributes),
    ),

  compressedAttentionBackward: (inputs, attributes) =>
    denseAttentionBackward(
      inputs,
      attributes.sequences.list,
      attributes.scale,
      (sequence) => blocksOf(sequence, attributes),
    ),
};

/** The query at t sees the blocks b with b d + l - 1 <= t. */
function blocksOf(
  { blockStart, keyCount }: Sequence,
  { length, stride }: Omit<BlockAttributes, 'sequences'>,
): Keys {
  const blocks = blockCount(keyCount, { length, stride });
  return {
    start: blockStart,
    count: blocks,
    seen: (from, count) =>
      visibleBlocks(tf.range(from, from + count, 1, 'int32'), blocks, {
        length,
        stride,
      }),
  };
}

/** bool `[T, blocks]` for queries at positions `t [T]`. */
export function visibleBlocks(
  t: tf.Tensor,
  blocks: number,
  { length, stride }: Omit<BlockAttributes, 'sequences'>,
): tf.Tensor {
  const ends = tf.range(
    length - 1,
    length - 1 + blocks * stride,
    stride,
    'int32',
  );
  return tf.lessEqual(tf.reshape(ends, [1, blocks]), tf.reshape(t, [-1, 1]));
}
