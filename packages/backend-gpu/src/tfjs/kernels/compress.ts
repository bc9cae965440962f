import { type BlockAttributes, blockCount } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, extents, indices, sumByRow } from './body';

type Names =
  | 'compress'
  | 'compressBackward'
  | 'unfoldBlocks'
  | 'unfoldBlocksBackward';

export const compressBodies: Bodies<Names> = {
  /** y_b = sum over m of w_m x_{b d + m} */
  compress({ x, logits }, attributes) {
    const w = slotWeights(logits, extents(x)[1], attributes.length);
    return { y: tf.sum(tf.mul(blocksOf(x, attributes), w), 1) };
  },

  /** dx_{b d + m} += w_m dy_b,  dw_m = sum over b of dy_b . x_{b d + m} */
  compressBackward({ x, logits, dY }, attributes) {
    if (dY.shape[0] === 0) {
      return { dX: tf.zerosLike(x), dLogits: logits && tf.zerosLike(logits) };
    }
    const w = slotWeights(logits, extents(x)[1], attributes.length);
    const dBlocks = tf.mul(tf.expandDims(dY, 1), w);
    const dX = backToRows(dBlocks, x.shape, attributes);
    if (!logits) return { dX };
    const along = tf.mul(blocksOf(x, attributes), tf.expandDims(dY, 1));
    const dW = tf.sum(along, [0, 3]);
    const weights = tf.squeeze(w, [0, 3]);
    const mean = tf.sum(tf.mul(weights, dW), 0, true);
    const dLogits = tf.mul(weights, tf.sub(dW, mean));
    return { dX, dLogits: tf.transpose(dLogits) };
  },

  /** y[b, g] = concat over m of (x[b d + m, g] + bias[g, m]) */
  unfoldBlocks({ x, bias }, attributes) {
    const [, groups, width] = extents(x);
    const { length } = attributes;
    const blocks = tf.transpose(blocksOf(x, attributes), [0, 2, 1, 3]);
    const rows = blocks.shape[0] ?? 0;
    const y = tf.reshape(blocks, [rows, groups, length * width]);
    if (!bias) return { y };
    const present = tf.reshape(layOut(attributes).present, [rows, 1, 1]);
    const flat = tf.reshape(bias, [1, groups, length * width]);
    return { y: tf.add(y, tf.mul(flat, present)) };
  },

  unfoldBlocksBackward({ dY }, attributes, { dX, dBias }) {
    if (attributes.sequences.blockRows(attributes) === 0) {
      const none = dBias && tf.zeros([...dBias.shape]);
      return { dX: tf.zeros([...dX.shape]), dBias: none };
    }
    const [, groups, width] = extents(dX);
    const each = tf.reshape(dY, [-1, groups, attributes.length, width]);
    const dBlocks = tf.transpose(each, [0, 2, 1, 3]);
    const { present } = layOut(attributes);
    const count = present.shape[0];
    // dY may have rows behind the last block.
    const blocks = tf.mul(
      tf.slice(dBlocks, 0, count),
      tf.reshape(present, [count, 1, 1, 1]),
    );
    return {
      dX: backToRows(blocks, dX.shape, attributes),
      dBias: dBias && tf.transpose(tf.sum(blocks, 0), [1, 0, 2]),
    };
  },
};

/** 1 / l, or softmax(logits): `[1, l, G, 1]` */
function slotWeights(
  logits: tf.Tensor | undefined,
  groups: number,
  length: number,
): tf.Tensor {
  const w = logits
    ? tf.transpose(tf.softmax(logits, -1))
    : tf.fill([length, groups], 1 / length);
  return tf.reshape(w, [1, length, groups, 1]);
}

/** The rows of each block, `[NB, l, G, D]`; 0 where no block is. */
function blocksOf(x: tf.Tensor, attributes: BlockAttributes): tf.Tensor {
  const [, groups, width] = extents(x);
  const { rows, present } = layOut(attributes);
  const count = present.shape[0];
  const shape = [count, attributes.length, groups, width];
  if (count === 0) return tf.zeros(shape);
  const taken = tf.reshape(tf.gather(x, rows), shape);
  return tf.mul(taken, tf.reshape(present, [count, 1, 1, 1]));
}

/** What blocks `[NB, l, G, D]` add to the rows that they were made of. */
function backToRows(
  blocks: tf.Tensor,
  shape: readonly number[],
  attributes: BlockAttributes,
): tf.Tensor {
  const [extent = 0, groups = 1, width = 1] = shape;
  const { rows, present } = layOut(attributes);
  const kept = tf.mul(blocks, tf.reshape(present, [-1, 1, 1, 1]));
  const flat: tf.Tensor2D = tf.reshape(kept, [rows.shape[0], groups * width]);
  return tf.reshape(sumByRow(flat, rows, extent), [...shape]);
}

/** The token row of each slot of each block, and which block rows there are. */
function layOut(attributes: BlockAttributes): {
  rows: tf.Tensor1D;
  present: tf.Tensor1D;
} {
  const { sequences, length, stride } = attributes;
  const count = sequences.blockRows(attributes);
  const rows = new Int32Array(count * length);
  const present = new Float32Array(count);
  for (const { keyStart, keyCount, blockStart } of sequences.list) {
    const blocks = blockCount(keyCount, { length, stride });
    for (let b = 0; b < blocks; b++) {
      present[blockStart + b] = 1;
      for (let m = 0; m < length; m++) {
        rows[(blockStart + b) * length + m] = keyStart + b * stride + m;
      }
    }
  }
  return { rows: indices(rows), present: tf.tensor1d(present) };
}
