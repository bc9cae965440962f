import {
  leaderCount,
  type SelectedAttentionAttributes,
  type Sequence,
} from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { attend } from './attend';
import {
  assemble,
  type Bodies,
  extents,
  indices as indexTensor,
  indicator,
  type Piece,
  pieceOf,
  zeroRows,
} from './body';
import {
  denseAttentionBackward,
  type Keys,
  type Operands,
} from './dense-attention';

export const selectedAttentionBodies: Bodies<
  'selectedAttention' | 'selectedAttentionBackward'
> = {
  /** Gathers each list's tokens: the work is that of the lists. */
  selectedAttention(inputs, attributes, { o, lse }) {
    const os: Piece[] = [];
    const lses: Piece[] = [];
    for (const sequence of attributes.sequences.list) {
      forEachPiece(inputs, sequence, attributes, (piece) => {
        os.push({ start: piece.start, rows: piece.o });
        lses.push({ start: piece.start, rows: piece.lse });
      });
    }
    const nothing = (shape: number[]) =>
      tf.fill(shape, Number.NEGATIVE_INFINITY);
    const [rows, heads, width] = extents(o);
    return {
      o: assemble(os, rows, [heads, width], zeroRows),
      lse: assemble(lses, lse.shape[0] ?? 0, [heads], nothing),
    };
  },

  /** Masks the tokens of all other blocks: no gradient has to be scattered. */
  selectedAttentionBackward({ indices, ...inputs }, attributes) {
    return denseAttentionBackward(
      inputs,
      attributes.sequences.list,
      attributes.scale,
      (sequence) => chosenTokens(indices, sequence, attributes),
      lists(inputs, indices),
    );
  },
};

/** Groups that differ in their list or in their keys. */
function lists({ k }: Operands, indices: tf.Tensor): number {
  return leastCommonMultiple(extents(k)[1], extents(indices)[1]);
}

function leastCommonMultiple(a: number, b: number): number {
  let multiple = a;
  while (multiple % b !== 0) multiple += a;
  return multiple;
}

interface Rows {
  /** Row of the first query. */
  readonly start: number;
  readonly o: tf.Tensor;
  readonly lse: tf.Tensor;
}

/** Some leaders at a time, each with its r queries as one tile. */
function forEachPiece(
  { indices, ...operands }: Operands & { readonly indices: tf.Tensor },
  sequence: Sequence,
  attributes: SelectedAttentionAttributes,
  visit: (rows: Rows) => void,
): void {
  const { sharing, blockSize } = attributes;
  const { queryCount, keyCount, leaderStart } = sequence;
  const [, heads] = extents(operands.q);
  const tokens = extents(indices)[2] * blockSize;
  const widest = Math.max(sharing * heads, extents(operands.k)[2]);
  const first = keyCount - queryCount;
  const count = leaderCount(first, queryCount, sharing);
  const step = pieceOf(tokens * widest * lists(operands, indices));
  for (let from = 0; from < count; from += step) {
    const size = Math.min(step, count - from);
    visit(
      tf.tidy(() =>
        leadersRows(operands, sequence, attributes, {
          chosen: tf.slice(indices, leaderStart + from, size),
          leader: Math.floor(first / sharing) + from,
        }),
      ) as unknown as Rows,
    );
  }
}

function leadersRows(
  { q, k, v, qRope, kRope }: Operands,
  { queryStart, queryCount, keyStart, keyCount }: Sequence,
  { sharing, blockSize, scale }: SelectedAttentionAttributes,
  {
    chosen,
    leader,
  }: {
    /** i32 `[L, G, n]` */
    readonly chosen: tf.Tensor;
    /** Number of the first. */
    readonly leader: number;
  },
): { start: number; o: tf.Tensor; lse: tf.Tensor } {
  const [count, listGroups, n] = extents(chosen);
  const [, heads] = extents(q);
  const groups = lists({ q, k, v }, chosen);
  const first = keyCount - queryCount;
  const from = Math.max(first, leader * sharing);
  const to = Math.min(keyCount, (leader + count) * sharing);
  const positions = Array.from(
    { length: count * sharing },
    (_, i) => leader * sharing + i,
  );
  // Positions without a query read some other one, and are dropped.
  const rows = indexTensor(
    positions.map(
      (t) => queryStart + Math.min(Math.max(t - first, 0), queryCount - 1),
    ),
  );
  // [L C, Hg, r, D]
  const queries = (x: tf.Tensor) => {
    const width = x.shape[2] ?? 0;
    const taken = tf.reshape(tf.gather(x, rows), [
      count,
      sharing,
      groups,
      heads / groups,
      width,
    ]);
    return tf.reshape(tf.transpose(taken, [0, 2, 3, 1, 4]), [
      count * groups,
      heads / groups,
      sharing,
      width,
    ]);
  };
  // Token of each slot, [L, C, n l']; -1 stands for no block.
  const each = tf.reshape(
    tf.tile(tf.expandDims(chosen, 2), [1, 1, groups / listGroups, 1]),
    [count, groups, n, 1],
  );
  const offsets = tf.reshape(tf.range(0, blockSize, 1, 'int32'), [
    1,
    1,
    1,
    blockSize,
  ]);
  const size = tf.scalar(blockSize, 'int32');
  const token = tf.reshape(tf.add(tf.mul(each, size), offsets), [
    count,
    groups,
    n * blockSize,
  ]);
  const last = tf.scalar(keyCount - 1, 'int32');
  const zero = tf.scalar(0, 'int32');
  const row = tf.add(
    tf.minimum(tf.maximum(token, zero), last),
    tf.scalar(keyStart, 'int32'),
  );
  // [L C, n l', D]; rows of the flattened [Nk, G] axis
  const keys = (x: tf.Tensor) => {
    const [, of, width] = extents(x);
    const group = tf.range(0, groups, 1, 'int32');
    const own = tf.floorDiv(group, tf.scalar(groups / of, 'int32'));
    const at = tf.add(
      tf.mul(row, tf.scalar(of, 'int32')),
      tf.reshape(own, [1, groups, 1]),
    );
    const flat = tf.reshape(x, [-1, width]);
    return tf.reshape(tf.gather(flat, tf.reshape(at, [-1]) as tf.Tensor1D), [
      count * groups,
      n * blockSize,
      width,
    ]);
  };
  const t = tf.reshape(indexTensor(positions), [count, 1, sharing, 1]);
  const at = tf.reshape(token, [count, groups, 1, n * blockSize]);
  const seen = tf.reshape(
    tf.logicalAnd(tf.lessEqual(at, t), tf.greaterEqual(at, zero)),
    [count * groups, 1, sharing, n * blockSize],
  );
  const found = attend(
    {
      q: queries(q),
      k: keys(k),
      v: keys(v),
      qRope: qRope && queries(qRope),
      kRope: kRope && keys(kRope),
    },
    seen,
    scale,
  );
  // Back to [T, H, D], without the positions that have no query.
  const back = (x: tf.Tensor, width: number) => {
    const parts = tf.reshape(x, [
      count,
      groups,
      heads / groups,
      sharing,
      width,
    ]);
    const flat = tf.reshape(tf.transpose(parts, [0, 3, 1, 2, 4]), [
      count * sharing,
      heads,
      width,
    ]);
    return tf.slice(flat, from - leader * sharing, to - from);
  };
  const o = back(found.o, v.shape[2] ?? 0);
  const lse = tf.reshape(back(tf.expandDims(found.lse, -1), 1), [-1, heads]);
  return { start: queryStart + from - first, o, lse };
}

/** Which tokens the lists of a sequence hold for each query. */
function chosenTokens(
  indices: tf.Tensor,
  { keyStart, keyCount, leaderStart }: Sequence,
  { sharing, blockSize }: SelectedAttentionAttributes,
): Keys {
  const blocks = Math.ceil(keyCount / blockSize);
  return {
    start: keyStart,
    count: keyCount,
    seen(from, count) {
      const leaders = indexTensor(
        Array.from(
          { length: count },
          (_, i) => leaderStart + Math.floor((from + i) / sharing),
        ),
      );
      // [T, G, blocks]: how often a list holds a block; none for -1.
      const held = tf.sum(indicator(tf.gather(indices, leaders), blocks), 2);
      const block = indexTensor(
        Array.from({ length: keyCount }, (_, j) => Math.floor(j / blockSize)),
      );
      // Turned while they are floats: WebGPU transposes nothing else.
      const byToken = tf.gather(tf.transpose(held, [1, 0, 2]), block, 2);
      const t = tf.reshape(tf.range(from, from + count, 1, 'int32'), [-1, 1]);
      const j = tf.reshape(tf.range(0, keyCount, 1, 'int32'), [1, -1]);
      const seen = tf.logicalAnd(tf.greater(byToken, 0), tf.lessEqual(j, t));
      // [G, 1, T, Tk]
      return tf.expandDims(seen, 1);
    },
  };
}
