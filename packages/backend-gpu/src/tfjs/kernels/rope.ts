import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, extents } from './body';

export const ropeBodies: Bodies<'rope'> = {
  /**
   * [y1]   [cos -sin] [x1]
   * [y2] = [sin  cos] [x2], angle = position frequency
   */
  rope({ x, positions, frequencies }, { style, inverse = false }, _, written) {
    const [rows, heads, width] = extents(x);
    const pairs = width / 2;
    const at = written('positions');
    const speeds = written('frequencies');
    const turn =
      at && speeds
        ? cosSinOnHost(at, speeds)
        : cosSinOnDevice(
            tf.reshape(positions, [rows, 1]),
            tf.reshape(frequencies, [1, pairs]),
          );
    const cos = tf.reshape(turn.cos, [rows, 1, pairs]);
    const sine = tf.reshape(turn.sin, [rows, 1, pairs]);
    const sin = inverse ? tf.neg(sine) : sine;
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

interface Turn {
  readonly cos: tf.Tensor;
  readonly sin: tf.Tensor;
}

/** Of `position frequency`: one upload in place of seventy small operations. */
function cosSinOnHost(
  positions: ArrayLike<number>,
  frequencies: ArrayLike<number>,
): Turn {
  const pairs = frequencies.length;
  const cos = new Float32Array(positions.length * pairs);
  const sin = new Float32Array(cos.length);
  for (let i = 0; i < cos.length; i++) {
    const position = positions[Math.floor(i / pairs)] ?? 0;
    const angle = position * (frequencies[i % pairs] ?? 0);
    cos[i] = Math.cos(angle);
    sin[i] = Math.sin(angle);
  }
  return { cos: tf.tensor1d(cos), sin: tf.tensor1d(sin) };
}

/**
 * The same where only the device knows them, `[T, 1]` and `[1, dR / 2]`.
 * WGSL promises cos and sin to 2^-11 only, near 0 only. Here the products are
 * split so that they are exact, quarter turns are taken off in three parts,
 * and polynomials do the rest. Source: Cody and Waite, Software Manual for the
 * Elementary Functions, 1980; coefficients of Cephes' sinf and cosf.
 */
function cosSinOnDevice(positions: tf.Tensor, frequencies: tf.Tensor): Turn {
  // Twelve digits by twelve: each product is exact.
  const spread = tf.mul(frequencies, 4097);
  const high = tf.sub(spread, tf.sub(spread, frequencies));
  const low = tf.sub(frequencies, high);
  const position = tf.cast(positions, 'float32');
  const coarse = tf.mul(tf.floor(tf.mul(position, 1 / 2048)), 2048);
  const a = lessQuarters(tf.mul(coarse, high));
  const b = lessQuarters(tf.mul(tf.sub(position, coarse), high));
  const c = lessQuarters(tf.mul(position, low));
  const rest = lessQuarters(tf.addN([a.rest, b.rest, c.rest]));
  const quarters = tf.addN([a.count, b.count, c.count, rest.count]);
  const r = rest.rest;
  const z = tf.square(r);
  const sine = tf.mul(r, polynomial(z, [1, ...sineTerms]));
  const cosine = polynomial(z, [1, -0.5, ...cosineTerms]);
  // sin(r + q pi / 2): odd quarters swap the two, every other pair turns signs.
  const half = tf.floor(tf.mul(quarters, 0.5));
  const isOdd = tf.greater(tf.sub(quarters, tf.mul(half, 2)), 0.5);
  const sinSign = signOf(half);
  const cosSign = signOf(tf.floor(tf.mul(tf.add(quarters, 1), 0.5)));
  return {
    cos: tf.mul(cosSign, tf.where(isOdd, sine, cosine)),
    sin: tf.mul(sinSign, tf.where(isOdd, cosine, sine)),
  };
}

const sineTerms = [-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4];
const cosineTerms = [
  4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5,
];

/** x less its quarter turns, and their number. */
function lessQuarters(x: tf.Tensor): { rest: tf.Tensor; count: tf.Tensor } {
  const count = tf.round(tf.mul(x, 2 / Math.PI));
  // Parts of pi / 2 with few digits.
  const parts = [1.5703125, 4.837512969970703e-4, 7.549789948768648e-8];
  let rest = x;
  for (const part of parts) rest = tf.sub(rest, tf.mul(count, part));
  return { rest, count };
}

function polynomial(z: tf.Tensor, terms: readonly number[]): tf.Tensor {
  return terms.reduceRight(
    (sum: tf.Tensor, term) => tf.add(tf.mul(sum, z), term),
    tf.zerosLike(z),
  );
}

/** 1 where n is even, -1 where it is odd. */
function signOf(n: tf.Tensor): tf.Tensor {
  const half = tf.mul(n, 0.5);
  return tf.sub(1, tf.mul(tf.sub(half, tf.floor(half)), 4));
}
