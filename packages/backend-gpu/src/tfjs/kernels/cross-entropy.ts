import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, indicator } from './body';

export const crossEntropyBodies: Bodies<
  'crossEntropy' | 'crossEntropyBackward'
> = {
  /** loss[n] = lse[n] - logits[n, targets[n]]; 0 where the target is -1 */
  crossEntropy({ logits, targets }) {
    const [rows = 0, vocabulary = 0] = logits.shape;
    const lse = tf.logSumExp(logits, 1);
    const column = tf.maximum(targets, tf.scalar(0, 'int32'));
    const at = tf.add(
      tf.mul(tf.range(0, rows, 1, 'int32'), tf.scalar(vocabulary, 'int32')),
      column,
    ) as tf.Tensor1D;
    const target = tf.gather(tf.reshape(logits, [-1]), at);
    return { loss: tf.mul(tf.sub(lse, target), counted(targets)), lse };
  },

  /** dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]) */
  crossEntropyBackward({ logits, targets, lse, dLoss }) {
    const [rows = 0, vocabulary = 0] = logits.shape;
    const column = (x: tf.Tensor) => tf.reshape(x, [rows, 1]);
    const p = tf.exp(tf.sub(logits, column(lse)));
    const target = indicator(targets, vocabulary);
    const d = tf.mul(dLoss, counted(targets));
    return { dLogits: tf.mul(tf.sub(p, target), column(d)) };
  },
};

function counted(targets: tf.Tensor): tf.Tensor {
  return tf.cast(tf.greaterEqual(targets, tf.scalar(0, 'int32')), 'float32');
}
