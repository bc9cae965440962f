import type { Tensor } from '@asa/core';
import { f32, input, output, u32 } from '../launch';
import { columnSum } from './column-sum';
import {
  extent,
  type KernelContext,
  type Kernels,
  sequenceOf,
  sigmoid,
} from './context';

const THREADS = 64;

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
   * d(log a_t) = sum over t' >= t of q_t' . dQ_t' - k_t' . dK_t'
   * dDecay_t = d(log a_t) (1 - sigmoid(decay_t + bias)) / temperature
   */
  linearAttentionBackward(inputs, outputs, attributes) {
    const { q, k, v, decay, bias, dO } = inputs;
    const { dQ, dK, dV, dDecay, dBias } = outputs;
    const common = { decay, bias };
    // Unrounded: their difference below is small against themselves.
    const fineQ = context.scratch(q.size, 'f32');
    const fineK = context.scratch(k.size, 'f32');
    const like = (tensor: Tensor) => tensor.reshape(q.shape);
    scan(context, attributes, {
      ...common,
      across: k,
      along: v,
      read: dO,
      result: dQ,
      fine: like(fineQ),
    });
    scan(context, attributes, {
      ...common,
      across: q,
      along: dO,
      read: v,
      result: dK,
      fine: like(fineK),
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
    decayGradient(context, inputs, { fineQ, fineK, dDecay, terms }, attributes);
    if (dBias) {
      const heads = extent(decay, 1);
      columnSum(context, terms, decay.size / heads, heads, dBias);
    }
    for (const tensor of [fineQ, fineK, terms]) tensor.free();
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
  const { across, along, read, decay, bias, result, fine, state, last } = call;
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
}
${last ? 'for (var y = 0u; y < Y; y++) { last[at + y * X] = Z[y]; }' : ''}`,
    }),
  });
}

function decayGradient(
  context: KernelContext,
  inputs: {
    readonly q: Tensor;
    readonly k: Tensor;
    readonly decay: Tensor;
    readonly bias?: Tensor | undefined;
  },
  results: Readonly<Record<'fineQ' | 'fineK' | 'dDecay' | 'terms', Tensor>>,
  { sequences, temperature }: Attributes,
): void {
  const { q, k, decay, bias } = inputs;
  const { fineQ, fineK, dDecay, terms } = results;
  const heads = extent(decay, 1);
  context.run({
    kernel: 'linearDecay',
    constants: { H: heads, WIDTH: extent(q, 2) },
    bindings: {
      q: input(q),
      k: input(k),
      decay: input(decay),
      bias: bias && input(bias),
      fineQ: input(fineQ),
      fineK: input(fineK),
      sequences: input(sequences.on(q.backend)),
      dDecay: output(dDecay),
      terms: output(terms),
    },
    uniforms: { temperature: f32(temperature), heads: u32(heads) },
    grid: [Math.ceil(heads / THREADS), 1, sequences.count],
    source: () => ({
      threads: THREADS,
      declarations: `${sequenceOf}\n${sigmoid}\n${decayOf(bias)}`,
      body: `let h = group.x * ${THREADS}u + tid;
if (h >= u.heads) { return; }
let s = sequenceOf(group.z);
var sum = 0.0;
for (var i = s.queryCount; i > 0u; i--) {
  let row = (s.queryStart + i - 1u) * H + h;
  for (var c = 0u; c < WIDTH; c++) {
    let at = row * WIDTH + c;
    sum += f32(q[at]) * fineQ[at] - f32(k[at]) * fineK[at];
  }
  // At the first row the state is 0: its decay has no effect.
  let d = select(sum, 0.0, i == 1u) * sigmoid(-logitOf(row, h)) / u.temperature;
  dDecay[row] = t_dDecay(d);
  terms[row] = d;
}`,
    }),
  });
}

/** a = sigmoid(decay + bias)^(1 / temperature) */
const decayOf = (bias: Tensor | undefined) => `
fn logitOf(row: u32, h: u32) -> f32 {
  return f32(decay[row])${bias ? ' + f32(bias[h])' : ''};
}
fn decayOf(row: u32, h: u32) -> f32 {
  let x = logitOf(row, h);
  return exp((min(x, 0.0) - log(1.0 + exp(-abs(x)))) / u.temperature);
}`;
