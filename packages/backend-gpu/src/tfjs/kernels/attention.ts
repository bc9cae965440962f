import type { AttentionAttributes, Sequence } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';
import {
  denseAttention,
  denseAttentionBackward,
  type Keys,
} from './dense-attention';

export const attentionBodies: Bodies<'attention' | 'attentionBackward'> = {
  attention: (inputs, attributes) =>
    denseAttention(
      inputs,
      attributes.sequences.list,
      attributes.scale,
      (sequence) => keysOf(sequence, attributes),
    ),

  attentionBackward: (inputs, attributes) =>
    denseAttentionBackward(
      inputs,
      attributes.sequences.list,
      attributes.scale,
      (sequence) => keysOf(sequence, attributes),
    ),
};

/** The query at t sees max(0, t - window + 1) .. t. */
function keysOf(
  { keyStart, keyCount }: Sequence,
  { window = Number.POSITIVE_INFINITY }: AttentionAttributes,
): Keys {
  return {
    start: keyStart,
    count: keyCount,
    seen(from, count) {
      const t = tf.reshape(tf.range(from, from + count, 1, 'int32'), [-1, 1]);
      const j = tf.reshape(tf.range(0, keyCount, 1, 'int32'), [1, -1]);
      const past = tf.lessEqual(j, t);
      if (window >= keyCount) return past;
      const near = tf.greater(j, tf.sub(t, tf.scalar(window, 'int32')));
      return tf.logicalAnd(past, near);
    },
  };
}
