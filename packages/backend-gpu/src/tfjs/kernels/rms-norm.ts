import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, sumRows } from './body';

export const rmsNormBodies: Bodies<'rmsNorm' | 'rmsNormBackward'> = {
  /** y = w x / sqrt(mean(x^2) + eps) */
  rmsNorm: ({ x, weight }, { eps }) => ({
    y: tf.mul(weight, tf.mul(x, inverseNorm(x, eps))),
  }),

  /** n = x r, g = w dy:  dx = r (g - n mean(g n)) + plus,  dw = sum of dy n */
  rmsNormBackward({ x, weight, dy, plus }, { eps }) {
    const r = inverseNorm(x, eps);
    const n = tf.mul(x, r);
    const g = tf.mul(weight, dy);
    const along = tf.mean(tf.mul(g, n), -1, true);
    const rows = tf.reshape(tf.mul(dy, n), [-1, ...weight.shape]);
    const dx = tf.mul(r, tf.sub(g, tf.mul(n, along)));
    return {
      dx: plus ? tf.add(dx, plus) : dx,
      dWeight: sumRows(rows),
    };
  },
};

/** r = 1 / sqrt(mean(x^2) + eps), `[..., 1]` */
function inverseNorm(x: tf.Tensor, eps: number): tf.Tensor {
  return tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), eps));
}
