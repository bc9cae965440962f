import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const adamwBodies: Bodies<'adamw'> = {
  /**
   * p -= lr wd p
   * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
   * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
   */
  adamw({ parameter, gradient, m, v, squaredNorm, rounded }, attributes) {
    const { learningRate, beta1, beta2, eps, weightDecay, step } = attributes;
    const { clip, lossScale = 1 } = attributes;
    const unscaled = tf.mul(gradient, 1 / lossScale);
    const g =
      clip !== undefined && squaredNorm
        ? tf.mul(
            unscaled,
            clipping(tf.mul(tf.sqrt(squaredNorm), 1 / lossScale), clip),
          )
        : unscaled;
    const m1 = tf.add(tf.mul(m, beta1), tf.mul(g, 1 - beta1));
    const v1 = tf.add(tf.mul(v, beta2), tf.mul(tf.square(g), 1 - beta2));
    const root = tf.add(tf.sqrt(tf.mul(v1, 1 / (1 - beta2 ** step))), eps);
    const rate = learningRate / (1 - beta1 ** step);
    const decayed = tf.mul(parameter, 1 - learningRate * weightDecay);
    const next = tf.sub(decayed, tf.mul(tf.div(m1, root), rate));
    return { parameter: next, m: m1, v: v1, ...(rounded && { rounded: next }) };
  },
};

/** min(1, clip / (norm + 1e-6)) */
function clipping(norm: tf.Tensor, clip: number): tf.Tensor {
  return tf.minimum(1, tf.div(clip, tf.add(norm, 1e-6)));
}
