import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, extents } from './body';

type Names =
  | 'headMatmul'
  | 'headMatmulBackwardInput'
  | 'headMatmulBackwardWeight';

export const headMatmulBodies: Bodies<Names> = {
  /** y[n, i] = W[i] x[n, g(i)] */
  headMatmul({ x, w }, { transposeWeight = false }) {
    const xs = byHead(x, w.shape[0] ?? 1);
    const y = tf.matMul(xs, w as tf.Tensor3D, false, !transposeWeight);
    return { y: tf.transpose(y, [1, 0, 2]) };
  },

  /** dx[n, g] = sum over heads i of g of W[i]^T dy[n, i] */
  headMatmulBackwardInput({ dy, w }, { transposeWeight = false, groups }) {
    const [n, heads] = extents(dy);
    const dys = tf.transpose(dy, [1, 0, 2]);
    const dx = tf.matMul(dys, w as tf.Tensor3D, false, transposeWeight);
    const width = dx.shape[2] ?? 0;
    const grouped = tf.reshape(dx, [groups, heads / groups, n, width]);
    return { dx: tf.transpose(tf.sum(grouped, 1), [1, 0, 2]) };
  },

  /** dW[i] = sum over n of dy[n, i] x[n, g(i)]^T */
  headMatmulBackwardWeight({ x, dy }, { transposeWeight = false }, { dw }) {
    if (x.size === 0) return { dw: tf.zeros([...dw.shape]) };
    const xs = byHead(x, dy.shape[1] ?? 1);
    const dys = tf.transpose(dy as tf.Tensor3D, [1, 0, 2]);
    return {
      dw: transposeWeight
        ? tf.matMul(xs, dys, true, false)
        : tf.matMul(dys, xs, true, false),
    };
  },
};

/** `x [N, G, K]` as each head reads it, `[H, N, K]`. */
function byHead(x: tf.Tensor, heads: number): tf.Tensor3D {
  const [n, groups, width] = extents(x);
  const xs = tf.reshape(tf.transpose(x, [1, 0, 2]), [groups, 1, n, width]);
  const each = tf.tile(xs, [1, heads / groups, 1, 1]);
  return tf.reshape(each, [heads, n, width]);
}
