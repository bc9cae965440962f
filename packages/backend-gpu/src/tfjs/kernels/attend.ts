import * as tf from '@tensorflow/tfjs-core';

/** Queries that see the same keys; C of them side by side. */
export interface Tile {
  /** `[C, Hg, T, Dk]` */
  readonly q: tf.Tensor;
  /** `[C, Tk, Dk]` */
  readonly k: tf.Tensor;
  /** `[C, Tk, Dv]` */
  readonly v: tf.Tensor;
  /** `[C, Hg, T, dR]` */
  readonly qRope?: tf.Tensor | undefined;
  /** `[C, Tk, dR]`, or `[1, Tk, dR]` for all. */
  readonly kRope?: tf.Tensor | undefined;
}

/** What stands for the score of a key that is not seen: its power is 0. */
const unseen = -1e30;

/**
 * `o [C, Hg, T, Dv]` and `lse [C, Hg, T]`; 0 and -inf where a query sees no key.
 * @param seen bool, broadcast to `[C, Hg, T, Tk]`.
 */
export function attend(
  tile: Tile,
  seen: tf.Tensor,
  scale: number,
): { o: tf.Tensor; lse: tf.Tensor } {
  const s = maskedScores(tile, seen, scale);
  const max = tf.max(s, -1, true);
  const lse = tf.add(tf.log(tf.sum(tf.exp(tf.sub(s, max)), -1)), squeeze(max));
  const isSeen = tf.greater(squeeze(max), unseen / 2);
  return {
    o: weighted(probabilities(s, seen), tile.v),
    lse: tf.where(isSeen, lse, tf.fill(lse.shape, Number.NEGATIVE_INFINITY)),
  };
}

/**
 * The gradients of a tile from that of `o`, in the shapes of the operands:
 * dP = dO V^T,  dS = p (dP - sum of p dP) scale,
 * dV = p^T dO,  dQ = dS K,  dK = dS^T Q
 */
export function attendBackward(
  tile: Tile,
  seen: tf.Tensor,
  scale: number,
  dO: tf.Tensor,
): { readonly [Name in keyof Tile]: tf.Tensor } {
  const { q, k, v, qRope, kRope } = tile;
  const p = probabilities(maskedScores(tile, seen, scale), seen);
  const dP = product(dO, v);
  const along = tf.sum(tf.mul(p, dP), -1, true);
  const dS = tf.mul(tf.mul(p, tf.sub(dP, along)), scale);
  return {
    q: weighted(dS, k),
    k: transposed(dS, q, k),
    v: transposed(p, dO, v),
    ...(qRope &&
      kRope && {
        qRope: weighted(dS, kRope),
        kRope: transposed(dS, qRope, kRope),
      }),
  };
}

/** `(q . k + qRope . kRope) scale`, `[C, Hg, T, Tk]` */
export function scores({ q, k, qRope, kRope }: Omit<Tile, 'v'>): tf.Tensor {
  const content = product(q, k);
  return qRope && kRope ? tf.add(content, product(qRope, kRope)) : content;
}

function maskedScores(tile: Tile, seen: tf.Tensor, scale: number): tf.Tensor {
  const s = tf.mul(scores(tile), scale);
  return tf.where(seen, s, tf.fill(s.shape, unseen));
}

/** A query that sees nothing has even weights: they are taken away. */
function probabilities(s: tf.Tensor, seen: tf.Tensor): tf.Tensor {
  return tf.mul(tf.softmax(s), tf.cast(seen, 'float32'));
}

/** `p [C, Hg, T, Tk]` times rows `[C or 1, Tk, D]`: `[C, Hg, T, D]` */
function weighted(p: tf.Tensor, rows: tf.Tensor): tf.Tensor {
  const [c = 0, members = 0, count = 0, keys = 0] = p.shape;
  const [of = 1, , width = 0] = rows.shape;
  const flat: tf.Tensor3D = tf.reshape(p, [of, -1, keys]);
  const y = tf.matMul(flat, rows as tf.Tensor3D);
  return tf.reshape(y, [c, members, count, width]);
}

/** `p^T` times queries `[C, Hg, T, D]`, in the shape of the keys. */
function transposed(p: tf.Tensor, x: tf.Tensor, like: tf.Tensor): tf.Tensor {
  const [of = 1, keys = 0, width = 0] = like.shape;
  const flat: tf.Tensor3D = tf.reshape(p, [of, -1, keys]);
  const rows: tf.Tensor3D = tf.reshape(x, [of, -1, width]);
  return tf.matMul(flat, rows, true, false);
}

/** `q [C, Hg, T, D]` times keys `[C or 1, Tk, D]`: `[C, Hg, T, Tk]` */
function product(q: tf.Tensor, k: tf.Tensor): tf.Tensor {
  const [c = 0, members = 0, count = 0, width = 0] = q.shape;
  const [of = 1, keys = 0] = k.shape;
  const flat: tf.Tensor3D = tf.reshape(q, [of, -1, width]);
  const s = tf.matMul(flat, k as tf.Tensor3D, false, true);
  return tf.reshape(s, [c, members, count, keys]);
}

function squeeze(x: tf.Tensor): tf.Tensor {
  return tf.squeeze(x, [-1]);
}
