import type { KernelTable } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { assemble, type Bodies, extents, sumRows, zeroRows } from './body';

type Attributes = Parameters<NonNullable<KernelTable['linearAttention']>>[2];
export const linearAttentionBodies: Bodies<
  'linearAttention' | 'linearAttentionBackward'
> = {
  linearAttention(inputs, attributes, { o, last }) {
    const { state } = inputs;
    const { list } = attributes.sequences;
    const results = list.map((_, s) =>
      forward(inputs, state && tf.slice(state, s, 1), s, attributes),
    );
    const pieces = results.map(({ o }, s) => ({
      start: list[s]?.queryStart ?? 0,
      rows: o,
    }));
    const [rows = 0, ...shape] = o.shape;
    const states = results.map((result) => result.last);
    return {
      o: assemble(pieces, rows, shape, zeroRows),
      last:
        states.length > 0 ? tf.concat(states, 0) : tf.zeros([...last.shape]),
    };
  },

  linearAttentionBackward({ dO, ...inputs }, attributes) {
    const { q, k, v, decay, bias } = inputs;
    const found = attributes.sequences.list.map((_, s) =>
      backward(inputs, dO, s, attributes),
    );
    const all = (name: keyof Gradients, like: tf.Tensor) =>
      assemble(
        found.map((gradients, s) => ({
          start: attributes.sequences.list[s]?.queryStart ?? 0,
          rows: gradients[name],
        })),
        like.shape[0] ?? 0,
        like.shape.slice(1),
        zeroRows,
      );
    const dDecay = all('decay', decay);
    return {
      dQ: all('q', q),
      dK: all('k', k),
      dV: all('v', v),
      dDecay,
      dBias: bias && sumRows(dDecay),
    };
  },
};

interface Operands {
  readonly q: tf.Tensor;
  readonly k: tf.Tensor;
  readonly v: tf.Tensor;
  readonly decay: tf.Tensor;
  readonly bias?: tf.Tensor;
}

/** Gradients of the rows of one sequence, `[T, H, ...]`. */
type Gradients = Readonly<Record<'q' | 'k' | 'v' | 'decay', tf.Tensor>>;

/** A chunk of one sequence; c is the running sum of log a in it. */
interface Chunk {
  readonly start: number;
  readonly size: number;
  /** `[H, T, D]` */
  readonly Q: tf.Tensor;
  readonly K: tf.Tensor;
  readonly V: tf.Tensor;
  /** `[H, T]` */
  readonly logits: tf.Tensor;
  /** exp(c_t), `[H, T, 1]` */
  readonly since: tf.Tensor;
  /** exp(c_T - c_t), `[H, T, 1]` */
  readonly until: tf.Tensor;
  /** exp(c_T), `[H, 1, 1]` */
  readonly whole: tf.Tensor;
  /** exp(c_t - c_s) for s <= t, else 0; `[H, T, T]` */
  readonly decays: tf.Tensor;
}

function chunksOf(
  { q, k, v, decay, bias }: Operands,
  s: number,
  { sequences, temperature, chunk }: Attributes,
): Chunk[] {
  const { queryStart = 0, queryCount = 0 } = sequences.list[s] ?? {};
  const heads = q.shape[1] ?? 1;
  const chunks: Chunk[] = [];
  for (let from = 0; from < queryCount; from += chunk) {
    const size = Math.min(chunk, queryCount - from);
    const start = queryStart + from;
    const part = (x: tf.Tensor) =>
      tf.transpose(tf.slice(x, start, size), x.rank === 3 ? [1, 0, 2] : [1, 0]);
    const logits = bias
      ? tf.add(part(decay), tf.reshape(bias, [heads, 1]))
      : part(decay);
    const c = tf.cumsum(tf.div(tf.logSigmoid(logits), temperature), 1);
    const column = tf.expandDims(c, 2);
    const end = tf.slice(column, [0, size - 1, 0], [heads, 1, 1]);
    const apart = tf.sub(column, tf.expandDims(c, 1));
    const never = tf.fill(apart.shape, -1e4);
    chunks.push({
      start,
      size,
      Q: part(q),
      K: part(k),
      V: part(v),
      logits,
      since: tf.exp(column),
      until: tf.exp(tf.sub(end, column)),
      whole: tf.exp(end),
      decays: tf.exp(tf.where(lower(size), apart, never)),
    });
  }
  return chunks;
}

/** S = exp(c_T) S + sum over s of exp(c_T - c_s) k_s v_s^T */
function next(S: tf.Tensor, { K, V, until, whole }: Chunk): tf.Tensor {
  const kept = tf.matMul(tf.mul(K, until), V, true, false);
  return tf.add(tf.mul(S, whole), kept);
}

interface Result {
  /** `[T, H, Dv]` */
  readonly o: tf.Tensor;
  /** `[1, H, Dk, Dv]` */
  readonly last: tf.Tensor;
}

/**
 * One sequence by chunks, S the state before each:
 * o_t = scale (exp(c_t) S^T q_t + sum over s <= t of exp(c_t - c_s) (q_t . k_s) v_s)
 */
function forward(
  operands: Operands,
  state: tf.Tensor | undefined,
  s: number,
  attributes: Attributes,
): Result {
  const [, heads, width] = extents(operands.k);
  const valueWidth = operands.v.shape[2] ?? 0;
  const shape = [heads, width, valueWidth];
  let S = state ? tf.reshape(state, shape) : tf.zeros(shape);
  const parts: tf.Tensor[] = [];
  for (const chunk of chunksOf(operands, s, attributes)) {
    const { Q, K, V, since, decays } = chunk;
    const own = tf.matMul(tf.mul(tf.matMul(Q, K, false, true), decays), V);
    const before = tf.mul(tf.matMul(Q, S), since);
    const o = tf.mul(tf.add(own, before), attributes.scale);
    parts.push(tf.transpose(o, [1, 0, 2]));
    S = next(S, chunk);
  }
  return {
    o: joined(parts, [heads, valueWidth]),
    last: tf.expandDims(S, 0),
  };
}

/**
 * Behind the last chunk dS = 0; then, backwards, with A = (Q K^T) decays and
 * G = scale dO, what `forward` and `next` say, read from right to left.
 */
function backward(
  operands: Operands,
  dO: tf.Tensor,
  s: number,
  attributes: Attributes,
): Gradients {
  const { scale, temperature } = attributes;
  const [, heads, width] = extents(operands.k);
  const valueWidth = operands.v.shape[2] ?? 0;
  const chunks = chunksOf(operands, s, attributes);
  const states = [tf.zeros([heads, width, valueWidth]) as tf.Tensor];
  for (const chunk of chunks)
    states.push(next(states.at(-1) as tf.Tensor, chunk));
  let dS: tf.Tensor = tf.zeros([heads, width, valueWidth]);
  const rows = { q: [], k: [], v: [], decay: [] } as Record<
    keyof Gradients,
    tf.Tensor[]
  >;
  for (const [index, chunk] of [...chunks.entries()].reverse()) {
    const { Q, K, V, since, until, whole, decays, start, size } = chunk;
    const S = states[index] as tf.Tensor;
    const G = tf.mul(tf.transpose(tf.slice(dO, start, size), [1, 0, 2]), scale);
    const A = tf.mul(tf.matMul(Q, K, false, true), decays);
    const dA = tf.matMul(G, V, false, true);
    const dProduct = tf.mul(dA, decays);
    const decayed = tf.mul(G, since);
    const kept = tf.mul(K, until);
    const dKept = tf.matMul(V, dS, false, true);
    rows.q.unshift(
      tf.add(tf.matMul(dProduct, K), tf.matMul(decayed, S, false, true)),
    );
    rows.k.unshift(
      tf.add(tf.matMul(dProduct, Q, true, false), tf.mul(dKept, until)),
    );
    rows.v.unshift(tf.add(tf.matMul(A, G, true, false), tf.matMul(kept, dS)));
    // What each c_t moves, [H, T, 1].
    const M = tf.mul(dA, A);
    const byKept = tf.sum(tf.mul(dKept, kept), 2, true);
    const each = tf.sub(
      tf.add(
        tf.sum(M, 2, true),
        tf.sum(tf.mul(tf.matMul(Q, S), decayed), 2, true),
      ),
      tf.add(tf.expandDims(tf.sum(M, 1), 2), byKept),
    );
    const end = tf.add(
      tf.sum(tf.mul(tf.mul(S, whole), dS), [1, 2], true),
      tf.sum(byKept, 1, true),
    );
    // c_t is the sum of the log a up to t, so log a_t moves all c behind it.
    // Turned by hand: cumsum's own `reverse` is wrong on WebGPU.
    const turned = tf.reverse(tf.squeeze(each, [2]), 1);
    const later = tf.reverse(tf.cumsum(turned, 1), 1);
    const dLog = tf.add(later, tf.squeeze(end, [2]));
    const slope = tf.div(tf.sigmoid(tf.neg(chunk.logits)), temperature);
    rows.decay.unshift(tf.mul(dLog, slope));
    dS = tf.add(tf.mul(dS, whole), tf.matMul(Q, decayed, true, false));
  }
  const byToken = (name: 'q' | 'k' | 'v', last: number) =>
    joined(
      rows[name].map((x) => tf.transpose(x, [1, 0, 2])),
      [heads, last],
    );
  return {
    q: byToken('q', width),
    k: byToken('k', width),
    v: byToken('v', valueWidth),
    decay: joined(
      rows.decay.map((x) => tf.transpose(x, [1, 0])),
      [heads],
    ),
  };
}

function joined(parts: tf.Tensor[], shape: number[]): tf.Tensor {
  return parts.length > 0 ? tf.concat(parts, 0) : tf.zeros([0, ...shape]);
}

/** bool `[H, T, T]`, broadcast: s <= t */
function lower(size: number): tf.Tensor {
  const at = tf.range(0, size, 1, 'int32');
  const below = tf.lessEqual(
    tf.reshape(at, [1, size]),
    tf.reshape(at, [size, 1]),
  );
  return tf.expandDims(below, 0);
}
