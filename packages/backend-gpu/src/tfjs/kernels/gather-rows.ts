import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, sumByRow } from './body';

export const gatherRowsBodies: Bodies<'gatherRows' | 'gatherRowsBackward'> = {
  gatherRows({ x, rows }) {
    return { y: tf.gather(x, rows as tf.Tensor1D) };
  },

  /** dx[r] = sum of dy[i] over rows[i] = r */
  gatherRowsBackward({ dy, rows }, { extent }, { dx }) {
    const [count = 0, ...rest] = dy.shape;
    const width = rest.reduce((product, n) => product * n, 1);
    const flat: tf.Tensor2D = tf.reshape(dy, [count, width]);
    const sum = sumByRow(flat, rows as tf.Tensor1D, extent);
    return { dx: tf.reshape(sum, [...dx.shape]) };
  },
};
