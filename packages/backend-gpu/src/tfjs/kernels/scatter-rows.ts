import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const scatterRowsBodies: Bodies<'scatterRows'> = {
  scatterRows({ target, x, rows }) {
    if (x.size === 0) return {};
    const [extent = 0] = target.shape;
    const flat = tf.reshape(target, [extent, -1]);
    const updates = tf.reshape(x, [rows.shape[0] ?? 0, -1]);
    const at = tf.reshape(rows, [-1, 1]);
    return { target: tf.tensorScatterUpdate(flat, at, updates) };
  },
};
