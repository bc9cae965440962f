import type { Tensor } from '@asa/core';
import { f32, input, output, u32 } from '../launch';
import { columnSum } from './column-sum';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  reductions,
  sequenceOf,
  sigmoid,
} from './context';

const THREADS = 64;
/** Every so manyth row's state is kept for the decays' gradient. */
const MARKED = 64;

export const linearAttentionKernels = (
  context: KernelContext,
): Kernels<'linearAttention' | 'linearAttentionBackward'> => ({
  /**
   * S_t = a_t S_{t-1} + k_t v_t^T
   * o_t = scale S_t^T q_t
   */
  linearAttention(inputs, { o, last }, attributes) {
    const { q, k, v, decay, bias, state } = inputs;
    scan(context, attributes, {
      across: v,
      along: k,
      read: q,
      decay,
      bias,
      result: o,
      state,
      last,
    });
  },

  /**
   * dS_t = a_{t+1} dS_{t+1} + scale q_t dO_t^T
   * dQ_t = scale S_t dO_t,  dK_t = dS_t v_t,  dV_t = dS_t^T k_t
   */
  linearAttentionBackward(inputs, outputs, attributes) {
    const { q, k, v, decay, bias, dO } = inputs;
    const { dQ, dK, dV, dDecay, dBias } = outputs;
    const common = { decay, bias };
    // Unrounded: the decays' gradient is their difference, and small.
    const fineQ = context.scratch(q.size, 'f32');
    const fineK = context.scratch(k.size, 'f32');
    // Of S before a row, and of dS from there on.
    const [rows, heads, width] = [extent(q, 0), extent(q, 1), extent(q, 2)];
    const states = marksOf(rows) * heads * width * extent(v, 2);
    const before = context.scratch(states, 'f32');
    const behind = context.scratch(states, 'f32');
    const like = (tensor: Tensor) => tensor.reshape(q.shape);
    scan(context, attributes, {
      ...common,
      across: k,
      along: v,
      read: dO,
      result: dQ,
      fine: like(fineQ),
      marked: before,
    });
    scan(context, attributes, {
      ...common,
      across: q,
      along: dO,
      read: v,
      result: dK,
      fine: like(fineK),
      marked: behind,
      backwards: true,
    });
    scan(context, attributes, {
      ...common,
      across: dO,
      along: q,
      read: k,
      result: dV,
      backwards: true,
    });
    const terms = context.scratch(decay.size, 'f32');
    context.clear(terms);
    context.clear(dDecay);
    const found = { fineQ, fineK, before, behind };
    decayGradient(context, inputs, found, { dDecay, terms }, attributes);
    if (dBias) columnSum(context, terms, rows, heads, dBias);
    for (const x of [fineQ, fineK, before, behind, terms]) x.free();
  },
});

interface Attributes {
  readonly sequences: {
    on(backend: Tensor['backend']): Tensor;
    readonly count: number;
  };
  readonly scale: number;
  readonly temperature: number;
}

interface Scan {
  /** `[N, H, X]`: u, of which each thread keeps a channel x. */
  readonly across: Tensor;
  /** `[N, H, Y]`: w. */
  readonly along: Tensor;
  /** `[N, H, Y]`: r. */
  readonly read: Tensor;
  readonly decay: Tensor;
  readonly bias?: Tensor | undefined;
  /** `[N, H, X]` */
  readonly result: Tensor;
  /** The result again, in f32. */
  readonly fine?: Tensor;
  /**
   * Z before each `MARKED`th row, on the way back from it on:
   * `[N / MARKED + 1, H, Y, X]`
   */
  readonly marked?: Tensor;
  /** Z before and behind, `[S, H, Y, X]`. */
  readonly state?: Tensor | undefined;
  readonly last?: Tensor;
  /** Z_t = a_{t+1} Z_{t+1} + u_t w_t^T */
  readonly backwards?: boolean;
}

/**
 * `Z_t = a_t Z_{t-1} + u_t w_t^T`, `result_t[x] = scale sum over y of
 * Z_t[x, y] r_t[y]`: each of the recurrences above, one thread a row of Z.
 */
function scan(
  context: KernelContext,
  attributes: Attributes,
  call: Scan,
): void {
  const { across, along, read, decay, bias, result, fine } = call;
  const { marked, state, last } = call;
  const { sequences, scale, temperature } = attributes;
  const [heads, x, y] = [
    extent(across, 1),
    extent(across, 2),
    extent(along, 2),
  ];
  context.clear(result);
  if (fine) context.clear(fine);
  context.run({
    kernel: 'linearScan',
    constants: { X: x, Y: y, H: heads, BACKWARDS: call.backwards ? 1 : 0 },
    bindings: {
      across: input(across),
      along: input(along),
      read_: input(read),
      decay: input(decay),
      bias: bias && input(bias),
      state: state && input(state),
      sequences: input(sequences.on(across.backend)),
      result: output(result),
      fine: fine && output(fine),
      marked: marked && output(marked),
      last: last && output(last),
    },
    uniforms: { scale: f32(scale), temperature: f32(temperature) },
    grid: [Math.ceil(x / THREADS), heads, sequences.count],
    source: () => ({
      threads: THREADS,
      declarations: `${sequenceOf}\n${decayOf(bias)}`,
      body: `let x = group.x * ${THREADS}u + tid;
let h = group.y;
if (x >= X) { return; }
let s = sequenceOf(group.z);
var Z: array<f32, Y>;
let at = (group.z * H + h) * X * Y + x;
for (var y = 0u; y < Y; y++) { Z[y] = ${state ? 'f32(state[at + y * X])' : '0.0'}; }
for (var i = 0u; i < s.queryCount; i++) {
  let t = s.queryStart + select(i, s.queryCount - 1u - i, BACKWARDS == 1u);
  let row = t * H + h;
  var a = 0.0;
  if (BACKWARDS == 0u) { a = decayOf(row, h); }
  else if (i > 0u) { a = decayOf(row + H, h); }
  let value = f32(across[row * X + x]);
  var sum = 0.0;
  for (var y = 0u; y < Y; y++) {
    let z = a * Z[y] + value * f32(along[row * Y + y]);
    Z[y] = z;
    sum += z * f32(read_[row * Y + y]);
  }
  result[row * X + x] = t_result(u.scale * sum);
  ${fine ? 'fine[row * X + x] = u.scale * sum;' : ''}
  ${marked ? keepMarked : ''}
}
${last ? 'for (var y = 0u; y < Y; y++) { last[at + y * X] = Z[y]; }' : ''}`,
    }),
  });
}

const keepMarked = `let mark = select(t + 1u, t, BACKWARDS == 1u);
  if (mark % ${MARKED}u == 0u) {
    let to = (mark / ${MARKED}u * H + h) * X * Y + x;
    for (var y = 0u; y < Y; y++) { marked[to + y * X] = Z[y]; }
  }`;

/**
 * d(log a_t) = d(log a_t+1) + q_t . dQ_t - k_t . dK_t
 *            = a_t sum over x, y of S_t-1[x, y] dS_t[x, y], dS in units of `scale`
 * of which the second, at rows whose states are marked, ends the errors that the
 * first one's differences add up.
 * dDecay_t = d(log a_t) (1 - sigmoid(decay_t + bias)) / temperature
 */
function decayGradient(
  context: KernelContext,
  inputs: {
    readonly q: Tensor;
    readonly k: Tensor;
    readonly decay: Tensor;
    readonly bias?: Tensor | undefined;
  },
  found: Readonly<Record<'fineQ' | 'fineK' | 'before' | 'behind', Tensor>>,
  results: Readonly<Record<'dDecay' | 'terms', Tensor>>,
  { sequences, scale, temperature }: Attributes,
): void {
  const { q, k, decay, bias } = inputs;
  const { fineQ, fineK, before, behind } = found;
  const { dDecay, terms } = results;
  const [heads, width] = [extent(q, 1), extent(q, 2)];
  const differences = context.scratch(decay.size, 'f32');
  const marks = marksOf(extent(q, 0));
  const starts = context.scratch(marks * heads, 'f32');
  context.run({
    kernel: 'decayDifferences',
    constants: { WIDTH: width },
    bindings: {
      q: input(q),
      k: input(k),
      fineQ: input(fineQ),
      fineK: input(fineK),
      differences: output(differences),
    },
    uniforms: { count: u32(decay.size) },
    ...elementwise(
      decay.size,
      () => `var sum = 0.0;
for (var at = i * WIDTH; at < (i + 1u) * WIDTH; at++) {
  sum += f32(q[at]) * fineQ[at] - f32(k[at]) * fineK[at];
}
differences[i] = sum;`,
    ),
  });
  context.run({
    kernel: 'decayStarts',
    constants: { H: heads, STATE: before.size / (marks * heads) },
    bindings: {
      decay: input(decay),
      bias: bias && input(bias),
      before: input(before),
      behind: input(behind),
      starts: output(starts),
    },
    uniforms: {
      rows: u32(extent(q, 0)),
      scale: f32(scale),
      temperature: f32(temperature),
    },
    grid: [marks, heads],
    source: () => ({
      threads: THREADS,
      declarations: `${reductions(THREADS)}\n${decayOf(bias)}`,
      body: `let at = group.x * H + group.y;
var sum = 0.0;
for (var c = tid; c < STATE; c += ${THREADS}u) {
  sum += before[at * STATE + c] * behind[at * STATE + c];
}
let product = reduceSum(tid, sum);
// Of the last mark there may be no row.
let row = group.x * ${MARKED}u;
if (tid > 0u || row >= u.rows) { return; }
starts[at] = u.scale * decayOf(row * H + group.y, group.y) * product;`,
    }),
  });
  context.run({
    kernel: 'linearDecay',
    constants: { H: heads },
    bindings: {
      differences: input(differences),
      starts: input(starts),
      decay: input(decay),
      bias: bias && input(bias),
      sequences: input(sequences.on(q.backend)),
      dDecay: output(dDecay),
      terms: output(terms),
    },
    uniforms: { temperature: f32(temperature) },
    grid: [Math.ceil(heads / THREADS), 1, sequences.count],
    source: () => ({
      threads: THREADS,
      declarations: `${sequenceOf}\n${sigmoid}\n${decayOf(bias)}`,
      body: `let h = group.x * ${THREADS}u + tid;
if (h >= H) { return; }
let s = sequenceOf(group.z);
var sum = 0.0;
for (var i = s.queryCount; i > 0u; i--) {
  let t = s.queryStart + i - 1u;
  let row = t * H + h;
  sum += differences[row];
  // At the first row the state is 0: its decay has no effect, and a state
  // marked there is that of the sequence before.
  if (i == 1u) { sum = 0.0; }
  else if (t % ${MARKED}u == 0u) { sum = starts[t / ${MARKED}u * H + h]; }
  let d = sum * sigmoid(-logitOf(row, h)) / u.temperature;
  dDecay[row] = t_dDecay(d);
  terms[row] = d;
}`,
    }),
  });
  for (const x of [differences, starts]) x.free();
}

/** Rows of states that are kept: before each `MARKED`th row, and behind all. */
const marksOf = (rows: number) => Math.floor(rows / MARKED) + 1;

/** a = sigmoid(decay + bias)^(1 / temperature) */
const decayOf = (bias: Tensor | undefined) => `
fn logitOf(row: u32, h: u32) -> f32 {
  return f32(decay[row])${bias ? ' + f32(bias[h])' : ''};
}
fn decayOf(row: u32, h: u32) -> f32 {
  let x = logitOf(row, h);
  return exp((min(x, 0.0) - log(1.0 + exp(-abs(x)))) / u.temperature);
}`;
