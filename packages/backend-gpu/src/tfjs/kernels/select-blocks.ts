import {
  blockCount,
  leaderCount,
  type RankingAttributes,
  type SelectBlocksAttributes,
  type Sequence,
} from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { scores } from './attend';
import {
  assemble,
  type Bodies,
  extents,
  indices,
  type Piece,
  pieceOf,
  zeroRows,
} from './body';
import { visibleBlocks } from './compressed-attention';
import { grouped, perGroup } from './dense-attention';

interface Operands {
  readonly q: tf.Tensor;
  readonly k: tf.Tensor;
  readonly qRope?: tf.Tensor | undefined;
  readonly kRope?: tf.Tensor | undefined;
  readonly lse: tf.Tensor;
}

export const selectBlocksBodies: Bodies<'blockImportance' | 'selectBlocks'> = {
  blockImportance(inputs, attributes, { importance }) {
    const [rows, groups, blocks] = extents(importance);
    const pieces: Piece[] = [];
    forEachPiece(inputs, attributes, ({ start, t, P }) => {
      const ours = P.shape[2] ?? 0;
      // Blocks in the future count nothing, whatever lies there.
      const kept = tf.where(isPast(t, ours, attributes), P, tf.zeros(P.shape));
      pieces.push({
        start,
        rows: tf.pad(kept, [
          [0, 0],
          [0, 0],
          [0, blocks - ours],
        ]),
      });
    });
    return { importance: assemble(pieces, rows, [groups, blocks], zeroRows) };
  },

  selectBlocks({ previous, ...inputs }, attributes, outputs) {
    const [rows, groups, count] = extents(outputs.indices);
    const pieces: Piece[] = [];
    attributes.sequences.list.forEach((sequence, s) => {
      if (inherits(sequence, attributes) && previous) {
        pieces.push({
          start: sequence.leaderStart,
          rows: tf.slice(previous, s, 1),
        });
      }
    });
    forEachPiece(inputs, attributes, ({ start, t, P }) => {
      pieces.push({ start, rows: best(P, t, attributes) });
    });
    const none = (shape: number[]) => tf.fill(shape, -1, 'int32');
    return { indices: assemble(pieces, rows, [groups, count], none) };
  },
};

/** Whether the first query takes over a list that was chosen before. */
function inherits(
  { keyCount, queryCount }: Sequence,
  { sharing }: RankingAttributes,
): boolean {
  return queryCount > 0 && (keyCount - queryCount) % sharing !== 0;
}

interface Leaders {
  /** Row of the first one's list. */
  readonly start: number;
  /** Their positions, i32 `[L]`. */
  readonly t: tf.Tensor1D;
  /** Importance, `[L, G, blocks]`. */
  readonly P: tf.Tensor;
}

/** The leaders among the queries, in pieces that bound the memory. */
function forEachPiece(
  operands: Operands,
  attributes: RankingAttributes,
  visit: (leaders: Leaders) => void,
): void {
  const { sequences, sharing, blockSize } = attributes;
  const heads = operands.q.shape[1] ?? 1;
  for (const sequence of sequences.list) {
    const { keyCount, queryCount, leaderStart, queryStart } = sequence;
    const first = keyCount - queryCount;
    const skipped = inherits(sequence, attributes) ? 1 : 0;
    const all = leaderCount(first, queryCount, sharing);
    const blocks = Math.ceil(keyCount / blockSize);
    const step = pieceOf(heads * (blockCount(keyCount, attributes) + blocks));
    for (let from = skipped; from < all; from += step) {
      const count = Math.min(step, all - from);
      const t = Array.from(
        { length: count },
        (_, i) => (Math.floor(first / sharing) + from + i) * sharing,
      );
      const rows = indices(t.map((position) => queryStart + position - first));
      const at = indices(t);
      visit({
        start: leaderStart + from,
        t: at,
        P: importance(operands, rows, at, sequence, attributes),
      });
    }
  }
}

/**
 * P[j] = sum over heads i of g, m in [0, l'/d), k in [0, l/d) of
 * p_i[(l'/d) j + m - k], p_i[b] = exp(score - lse_i), b visible to t
 */
function importance(
  { q, k, qRope, kRope, lse }: Operands,
  rows: tf.Tensor1D,
  t: tf.Tensor1D,
  { blockStart, keyCount }: Sequence,
  attributes: RankingAttributes,
): tf.Tensor {
  const { groups, scale, blockSize, length, stride } = attributes;
  const [, heads] = extents(q);
  const keyHeads = extents(k)[1];
  const count = rows.shape[0];
  const blocks = blockCount(keyCount, attributes);
  const chosen = Math.ceil(keyCount / blockSize);
  if (blocks === 0) return tf.zeros([count, groups, chosen]);
  const take = (x: tf.Tensor) => grouped(tf.gather(x, rows), keyHeads);
  const s = scores({
    q: take(q),
    k: perGroup(tf.slice(k, blockStart, blocks), keyHeads),
    qRope: qRope && take(qRope),
    kRope:
      kRope && tf.transpose(tf.slice(kRope, blockStart, blocks), [1, 0, 2]),
  });
  // [H, L, blocks]
  const byHead = tf.reshape(tf.mul(s, scale), [heads, count, blocks]);
  const norm = tf.reshape(tf.transpose(tf.gather(lse, rows), [1, 0]), [
    heads,
    count,
    1,
  ]);
  const seen = tf.expandDims(visibleBlocks(t, blocks, attributes), 0);
  const unseen = tf.fill(byHead.shape, -1e4);
  const p = tf.exp(tf.where(seen, tf.sub(byHead, norm), unseen));
  const visible = tf.mul(p, tf.cast(seen, 'float32'));
  const sums = tf.sum(
    tf.reshape(visible, [groups, heads / groups, count, blocks]),
    1,
  );
  const weights = overlap(blocks, chosen, blockSize / stride, length / stride);
  const flat: tf.Tensor2D = tf.reshape(sums, [groups * count, blocks]);
  const P = tf.reshape(tf.matMul(flat, weights), [groups, count, chosen]);
  return tf.transpose(P, [1, 0, 2]);
}

/** How often block b counts for selection block j, `[blocks, chosen]`. */
function overlap(
  blocks: number,
  chosen: number,
  strides: number,
  lengths: number,
): tf.Tensor2D {
  const weights = new Float32Array(blocks * chosen);
  for (let j = 0; j < chosen; j++) {
    for (let m = 0; m < strides; m++) {
      for (let k = 0; k < lengths; k++) {
        const b = strides * j + m - k;
        if (b < 0 || b >= blocks) continue;
        const at = b * chosen + j;
        weights[at] = (weights[at] ?? 0) + 1;
      }
    }
  }
  return tf.tensor2d(weights, [blocks, chosen]);
}

/** bool `[L, 1, blocks]`: j <= floor(t / l') */
function isPast(
  t: tf.Tensor1D,
  blocks: number,
  { blockSize }: RankingAttributes,
): tf.Tensor {
  const own = tf.reshape(ownBlock(t, blockSize), [-1, 1, 1]);
  return tf.lessEqual(numbers(blocks), own);
}

function ownBlock(t: tf.Tensor1D, blockSize: number): tf.Tensor {
  return tf.floorDiv(t, tf.scalar(blockSize, 'int32'));
}

/** `[1, 1, blocks]`: 0, 1, 2, ... */
function numbers(blocks: number): tf.Tensor {
  return tf.reshape(tf.range(0, blocks, 1, 'int32'), [1, 1, blocks]);
}

/** Above every importance, which is at most heads times weights. */
const forced = 1e30;

/** F, then the best others by (P descending, j ascending); `[L, G, n]` ascending */
function best(
  P: tf.Tensor,
  t: tf.Tensor1D,
  attributes: SelectBlocksAttributes,
): tf.Tensor {
  const { blockSize, count, initial, local } = attributes;
  const [, , blocks = 0] = P.shape;
  const j = numbers(blocks);
  const own = tf.reshape(ownBlock(t, blockSize), [-1, 1, 1]);
  const isForced = tf.logicalOr(
    tf.less(j, tf.scalar(initial, 'int32')),
    tf.greater(j, tf.sub(own, tf.scalar(local, 'int32'))),
  );
  const all = (value: number) => tf.fill(P.shape, value);
  const ranked = tf.where(
    isPast(t, blocks, attributes),
    tf.where(isForced, all(forced), P),
    all(-1),
  );
  // Of equal values the lower index comes first.
  const padded = tf.pad(
    ranked,
    [
      [0, 0],
      [0, 0],
      [0, Math.max(0, count - blocks)],
    ],
    -1,
  );
  const { values, indices: found } = tf.topk(padded, count);
  const isBlock = tf.greaterEqual(values, 0);
  // Ascending; what is no block goes behind. f32 holds these numbers exactly.
  const last = tf.fill(found.shape, 2 ** 24);
  const keys = tf.where(isBlock, tf.cast(found, 'float32'), last);
  const ascending = tf.neg(tf.topk(tf.neg(keys), count).values);
  const none = tf.fill(found.shape, -1);
  return tf.cast(tf.where(tf.less(ascending, last), ascending, none), 'int32');
}
