import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, extents } from './body';

export const ropeBodies: Bodies<'rope'> = {
  /**
   * [y1]   [cos -sin] [x1]
   * [y2] = [sin  cos] [x2], angle = position frequency
   */
  rope({ x, positions, frequencies }, { style, inverse = false }) {
    const [rows, heads, width] = extents(x);
    const pairs = width / 2;
    const turns = tf.mul(
      tf.reshape(tf.cast(positions, 'float32'), [rows, 1]),
      tf.reshape(frequencies, [1, pairs]),
    );
    const angle = tf.reshape(turns, [rows, 1, pairs]);
    const cos = tf.cos(angle);
    const sin = inverse ? tf.neg(tf.sin(angle)) : tf.sin(angle);
    // The axis on which the two channels of a pair lie.
    const axis = style === 'half' ? 2 : 3;
    const shape =
      axis === 2 ? [rows, heads, 2, pairs] : [rows, heads, pairs, 2];
    const [x1, x2] = tf.unstack(tf.reshape(x, shape), axis);
    if (!x1 || !x2) return { y: tf.clone(x) };
    const y1 = tf.sub(tf.mul(x1, cos), tf.mul(x2, sin));
    const y2 = tf.add(tf.mul(x1, sin), tf.mul(x2, cos));
    return { y: tf.stack([y1, y2], axis) };
  },
};
