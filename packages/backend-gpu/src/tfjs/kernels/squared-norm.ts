import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const squaredNormBodies: Bodies<'squaredNorm'> = {
  squaredNorm({ x, total }) {
    if (x.size === 0) return {};
    return { total: tf.add(total, tf.sum(tf.square(x))) };
  },
};
