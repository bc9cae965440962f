import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const matmulBodies: Bodies<'matmul'> = {
  matmul({ a, b, plus }, { transposeA = false, transposeB = false }) {
    const columns = a.shape.at(-1) ?? 0;
    const rows = columns === 0 ? 0 : a.size / columns;
    const A = tf.reshape(a, [rows, columns]);
    const y = tf.matMul(A, b as tf.Tensor2D, transposeA, transposeB);
    return { y: plus ? tf.add(y, tf.reshape(plus, y.shape)) : y };
  },
};
