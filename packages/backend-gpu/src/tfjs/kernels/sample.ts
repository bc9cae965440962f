import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const sampleBodies: Bodies<'sample'> = {
  /** the token in whose share of the kept probabilities the number falls */
  sample({ logits, settings }, { width }) {
    const rows = logits.shape[0] ?? 0;
    const x = tf.slice(logits, [0, 0], [rows, width]);
    const [temperature, topK, topP, minP, random] = tf.split(
      settings,
      5,
      1,
    ) as [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor];
    // Of equal logits the lower id comes first.
    const { values, indices: ranked } = tf.topk(x, width);
    const isGreedy = tf.equal(temperature, 0);
    const divisor = tf.where(isGreedy, tf.onesLike(temperature), temperature);
    const best = tf.slice(values, [0, 0], [rows, 1]);
    const weights = tf.exp(tf.div(tf.sub(values, best), divisor));
    const rank = tf.range(0, width, 1, 'float32');
    const few = tf.mul(weights, asNumber(tf.less(rank, topK)));
    const share = tf.mul(topP, tf.sum(few, 1, true));
    const before = tf.cumsum(few, 1, true);
    // top-p keeps the token that reaches the share.
    const inShare = tf.logicalOr(
      tf.greaterEqual(topP, 1),
      tf.less(before, share),
    );
    const isKept = tf.logicalAnd(inShare, tf.greaterEqual(few, minP));
    const kept = byId(tf.mul(few, asNumber(isKept)), ranked);
    const aim = tf.mul(random, tf.sum(kept, 1, true));
    const isThere = tf.greater(kept, 0);
    const isHit = tf.logicalAnd(isThere, tf.greater(tf.cumsum(kept, 1), aim));
    const none = tf.fill([rows, width], width);
    const id = tf.add(tf.zerosLike(none), rank);
    const first = tf.min(tf.where(isHit, id, none), 1, true);
    const last = tf.max(tf.where(isThere, id, tf.neg(none)), 1, true);
    const drawn = tf.where(tf.less(first, width), first, last);
    const top = tf.cast(tf.slice(ranked, [0, 0], [rows, 1]), 'float32');
    const isFit = tf.all(tf.less(x, infinity()), 1, true);
    const unfit = tf.fill([rows, 1], -1);
    const token = tf.where(isFit, tf.where(isGreedy, top, drawn), unfit);
    const own = tf.where(tf.equal(id, token), x, tf.zerosLike(x));
    const log = tf.sub(tf.sum(own, 1, true), tf.logSumExp(x, 1, true));
    return {
      tokens: tf.cast(token, 'int32'),
      chosen: tf.concat([token, tf.where(isFit, log, tf.zerosLike(log))], 1),
    };
  },
};

/** Values in the order of rank back to that of the ids, `[R, width]`. */
function byId(values: tf.Tensor, ranked: tf.Tensor): tf.Tensor {
  const [rows = 0, width = 0] = values.shape;
  const start = tf.mul(
    tf.range(0, rows, 1, 'int32'),
    tf.scalar(width, 'int32'),
  );
  const at = tf.add(ranked, tf.reshape(start, [rows, 1]));
  const flat = tf.tensorScatterUpdate(
    tf.zeros([rows * width, 1]),
    tf.reshape(at, [-1, 1]),
    tf.reshape(values, [-1, 1]),
  );
  return tf.reshape(flat, [rows, width]);
}

function asNumber(flags: tf.Tensor): tf.Tensor {
  return tf.cast(flags, 'float32');
}

/** From data: no shader has to spell it. */
function infinity(): tf.Tensor {
  return tf.tensor1d([Number.POSITIVE_INFINITY]);
}
