import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const swigluBodies: Bodies<'swiglu' | 'swigluBackward'> = {
  /** y = silu(gate) up, silu(x) = x sigmoid(x) */
  swiglu({ gate, up }) {
    const silu = tf.mul(gate, tf.sigmoid(gate));
    return { y: up ? tf.mul(silu, up) : silu };
  },

  /** silu'(x) = s (1 + x (1 - s)), s = sigmoid(x) */
  swigluBackward({ gate, up, dy }) {
    const s = tf.sigmoid(gate);
    const slope = tf.mul(s, tf.add(1, tf.mul(gate, tf.sub(1, s))));
    const d = up ? tf.mul(dy, up) : dy;
    return {
      dGate: tf.mul(d, slope),
      dUp: up && tf.mul(dy, tf.mul(gate, s)),
    };
  },
};
