import type { Sequences, Tensor } from '@asa/core';
import type { Memory, Place } from '../memory';
import { program, quotient } from '../program';
import { extent, type KernelContext, type Kernels } from './context';

/**
 * Steps of a span. Inside one, every step looks at every other one; what lies
 * before a span comes through the state S there, what lies behind it through
 * the gradient G of the state there. L is the sum of log a over some steps.
 */
const span = 32;

const decayLogit = (bias: boolean) =>
  `const x = decay[this.thread.y * heads + this.thread.x]${bias ? ' + bias[this.thread.x]' : ''};
  const e = Math.exp(-Math.abs(x));`;

/** log a = logsigmoid(decay + bias) / temperature; `[N, H]` */
const logDecays = [false, true].map((bias) =>
  program(
    bias ? 'logDecaysBiased' : 'logDecays',
    {
      arrays: ['decay', ...(bias ? ['bias'] : [])],
      integers: ['heads'],
      reals: ['temperature'],
    },
    `${decayLogit(bias)}
  return (Math.min(x, 0) - Math.log(1 + e)) / temperature;`,
  ),
);

// Columns of `runs`: the sequence, its first row, and steps up to a span.
// Threads: value channel j, head and key channel i, run.
const run = `const head = ${quotient('this.thread.y', 'width')};
  const start = runs[this.thread.z * 4 + 1];
  const steps = runs[this.thread.z * 4 + 2];`;

/** S_t = a_t S_{t-1} + k_t v_t^T, from a sequence's first state on. */
const states = program(
  'linearStates',
  {
    arrays: ['k', 'v', 'logs', 'initial', 'runs'],
    integers: ['heads', 'width', 'valueWidth', 'hasInitial'],
  },
  `${run}
  const sequence = runs[this.thread.z * 4];
  let state = 0;
  if (hasInitial > 0) {
    state = initial[(Math.floor(sequence) * heads * width + this.thread.y)
      * valueWidth + this.thread.x];
  }
  for (let t = 0; t < steps; t++) {
    const a = Math.exp(logs[(Math.floor(start) + t) * heads
      + Math.floor(head)]);
    state = a * state
      + k[(Math.floor(start) + t) * heads * width + this.thread.y]
      * v[((Math.floor(start) + t) * heads + Math.floor(head)) * valueWidth
        + this.thread.x];
  }
  return state;`,
);

/**
 * G = a_{e+1} dS_{e+1} behind the last step e of a span, where
 * dS_t = a_{t+1} dS_{t+1} + scale q_t dO_t^T. Column 3 of `runs` is how many
 * steps the sequence has.
 */
const stateGradients = program(
  'linearStateGradients',
  {
    arrays: ['q', 'dO', 'logs', 'runs'],
    integers: ['heads', 'width', 'valueWidth', 'span'],
    reals: ['scale'],
  },
  `${run}
  const behind = runs[this.thread.z * 4 + 3] - steps - span;
  const end = start + runs[this.thread.z * 4 + 3] - 1;
  let state = 0;
  for (let n = 0; n < behind; n++) {
    const t = end - n;
    const a = Math.exp(logs[Math.floor(t) * heads + Math.floor(head)]);
    state = a * (state
      + scale * q[Math.floor(t) * heads * width + this.thread.y]
      * dO[(Math.floor(t) * heads + Math.floor(head)) * valueWidth
        + this.thread.x]);
  }
  return state;`,
);

// Columns of `places`: the span, the steps in it before and behind a row.
const place = `const own = places[this.thread.z * 3];
  if (own < 0) { return 0; }
  const before = places[this.thread.z * 3 + 1];
  const behind = places[this.thread.z * 3 + 2];
  const first = this.thread.z - before;`;

/**
 * (x_t . y_u) scale of a span's step u and the row t behind it, and, where
 * `decayed` is 1, times a_{u+1} .. a_t. Threads: u, head, t.
 */
const scores = program(
  'linearScores',
  {
    arrays: ['x', 'y', 'logs', 'places'],
    integers: ['heads', 'wide', 'decayed'],
    reals: ['scale'],
  },
  `const before = places[this.thread.z * 3 + 1];
  if (this.thread.x > before) { return 0; }
  const first = this.thread.z - before;
  let log = 0;
  for (let i = 0; i < before; i++) {
    if (i >= this.thread.x) {
      log += logs[(Math.floor(first) + i + 1) * heads + this.thread.y];
    }
  }
  let dot = 0;
  for (let c = 0; c < wide; c++) {
    dot += x[(this.thread.z * heads + this.thread.y) * wide + c]
      * y[((Math.floor(first) + this.thread.x) * heads + this.thread.y) * wide
        + c];
  }
  return Math.exp(log * decayed) * dot * scale;`,
);

/** What a state gives a row: its product with the row of `y`. */
const contractions = {
  /** For each value channel, over the key channels. */
  keys: `for (let i = 0; i < width; i++) {
    old += y[(this.thread.z * heads + this.thread.y) * width + i]
      * state[((Math.floor(own) * heads + this.thread.y) * width + i)
        * valueWidth + this.thread.x];
  }`,
  /** For each key channel, over the value channels. */
  values: `for (let j = 0; j < valueWidth; j++) {
    old += y[(this.thread.z * heads + this.thread.y) * valueWidth + j]
      * state[((Math.floor(own) * heads + this.thread.y) * width
        + this.thread.x) * valueWidth + j];
  }`,
};

const sums = {
  arrays: ['f', 'x', 'y', 'logs', 'state', 'places'],
  integers: ['heads', 'width', 'valueWidth', 'wide', 'span'],
  reals: ['scale'],
} as const;

/** sum over u <= t of f[t, u] x_u + a_first .. a_t scale S y_t */
const earlier = (name: string, contraction: keyof typeof contractions) =>
  program(
    name,
    sums,
    `${place}
  let sum = 0;
  let log = 0;
  for (let u = 0; u <= before; u++) {
    log += logs[(Math.floor(first) + u) * heads + this.thread.y];
    sum += f[(this.thread.z * heads + this.thread.y) * span + u]
      * x[((Math.floor(first) + u) * heads + this.thread.y) * wide
        + this.thread.x];
  }
  let old = 0;
  ${contractions[contraction]}
  return sum + Math.exp(log) * scale * old;`,
  );

/** sum over t >= u of f[t, u] x_t + a_{u+1} .. a_e G y_u */
const later = (name: string, contraction: keyof typeof contractions) =>
  program(
    name,
    sums,
    `${place}
  let sum = 0;
  let log = 0;
  for (let n = 0; n <= behind; n++) {
    if (n > 0) {
      log += logs[(this.thread.z + n) * heads + this.thread.y];
    }
    sum += f[((this.thread.z + n) * heads + this.thread.y) * span
      + Math.floor(before)]
      * x[((this.thread.z + n) * heads + this.thread.y) * wide
        + this.thread.x];
  }
  let old = 0;
  ${contractions[contraction]}
  return sum + Math.exp(log) * scale * old;`,
  );

const output = earlier('linearAttention', 'keys');
const queryGradient = earlier('linearAttentionBackwardQ', 'values');
const keyGradient = later('linearAttentionBackwardK', 'values');
const valueGradient = later('linearAttentionBackwardV', 'keys');

/**
 * d(log a_t): all products of the recurrence in which a_t is a factor. Those of
 * u < t with t' >= t inside the span are `p c`; those with a state before it
 * are dO . (o that comes from it), `old`; those with one behind it are
 * v . (dV that comes from it), `future`; those with both are `both`.
 */
const logGradient = program(
  'linearAttentionBackwardLog',
  {
    arrays: ['p', 'c', 'old', 'future', 'both', 'places'],
    integers: ['heads', 'span'],
  },
  `const own = places[this.thread.y * 3];
  if (own < 0) { return 0; }
  const before = places[this.thread.y * 3 + 1];
  const behind = places[this.thread.y * 3 + 2];
  let sum = both[Math.floor(own) * heads + this.thread.x];
  for (let n = 0; n <= behind; n++) {
    sum += old[(this.thread.y + n) * heads + this.thread.x];
    for (let u = 0; u < before; u++) {
      sum += p[((this.thread.y + n) * heads + this.thread.x) * span + u]
        * c[((this.thread.y + n) * heads + this.thread.x) * span + u];
    }
  }
  const first = this.thread.y - before;
  for (let m = 0; m < before; m++) {
    sum += future[(Math.floor(first) + m) * heads + this.thread.x];
  }
  return sum;`,
);

/** dDecay = d(log a) (1 - sigmoid(decay + bias)) / temperature */
const decayGradient = [false, true].map((bias) =>
  program(
    `linearAttentionBackwardDecay${bias ? 'Biased' : ''}`,
    {
      arrays: ['dLog', 'decay', ...(bias ? ['bias'] : [])],
      integers: ['heads'],
      reals: ['temperature'],
    },
    `${decayLogit(bias)}
  let s = 1 / (1 + e);
  if (x >= 0) { s = e / (1 + e); }
  return dLog[this.thread.y * heads + this.thread.x] * s / temperature;`,
  ),
);

/** a_from .. a_to scale (k^T S v) of each row; threads: head, row. */
const throughState = (name: string, log: string) =>
  program(
    name,
    {
      arrays: ['k', 'v', 'logs', 'state', 'places'],
      integers: ['heads', 'width', 'valueWidth'],
      reals: ['scale'],
    },
    `const own = places[this.thread.y * 3];
  if (own < 0) { return 0; }
  let log = 0;
  ${log}
  let sum = 0;
  for (let i = 0; i < width; i++) {
    for (let j = 0; j < valueWidth; j++) {
      sum += k[(this.thread.y * heads + this.thread.x) * width + i]
        * v[(this.thread.y * heads + this.thread.x) * valueWidth + j]
        * state[((Math.floor(own) * heads + this.thread.x) * width + i)
          * valueWidth + j];
    }
  }
  return Math.exp(log) * scale * sum;`,
  );

const fromBefore = throughState(
  'linearFromBefore',
  `const before = places[this.thread.y * 3 + 1];
  for (let n = 0; n <= before; n++) {
    log += logs[(this.thread.y - n) * heads + this.thread.x];
  }`,
);
const toBehind = throughState(
  'linearToBehind',
  `const behind = places[this.thread.y * 3 + 2];
  for (let n = 0; n < behind; n++) {
    log += logs[(this.thread.y + n + 1) * heads + this.thread.x];
  }`,
);

/** a over a whole span, times the sum of S G; threads: head, span. */
const across = program(
  'linearAcross',
  {
    arrays: ['S', 'G', 'logs', 'runs'],
    integers: ['heads', 'size', 'span'],
  },
  `const from = runs[this.thread.y * 4 + 1] + runs[this.thread.y * 4 + 2];
  const left = runs[this.thread.y * 4 + 3] - runs[this.thread.y * 4 + 2];
  const steps = Math.min(span, left);
  let log = 0;
  for (let t = 0; t < steps; t++) {
    log += logs[(Math.floor(from) + t) * heads + this.thread.x];
  }
  let sum = 0;
  for (let i = 0; i < size; i++) {
    sum += S[(this.thread.y * heads + this.thread.x) * size + i]
      * G[(this.thread.y * heads + this.thread.x) * size + i];
  }
  return Math.exp(log) * sum;`,
);

/** dBias = sum over n of dDecay; rows of no sequence are 0. */
const biasGradient = program(
  'linearAttentionBackwardBias',
  { arrays: ['dDecay'], integers: ['rows', 'heads'] },
  `let sum = 0;
  for (let n = 0; n < rows; n++) { sum += dDecay[n * heads + this.thread.x]; }
  return sum;`,
);

export const linearAttentionKernels = (
  context: KernelContext,
): Kernels<'linearAttention' | 'linearAttentionBackward'> => ({
  /**
   * S_t = a_t S_{t-1} + k_t v_t^T
   * o_t = scale S_t^T q_t
   */
  linearAttention(inputs, { o, last }, { sequences, scale, temperature }) {
    const { q, k, v, state } = inputs;
    const call = new Call(context, inputs, sequences, temperature);
    const { sizes, tables, heads, rows } = call;
    const initial = state ?? k;
    const hasInitial = state ? 1 : 0;
    const recurrence = { ...tables, ...sizes, k, v, initial, hasInitial };
    const S = call.states();
    context.run(states, recurrence, S, call.stateThreads());
    const runs = call.keep(
      context.table(
        sequences.list.flatMap((s, i) => [i, s.queryStart, s.queryCount, 0]),
      ),
    );
    const threads = call.stateThreads(sequences.count);
    context.run(states, { ...recurrence, runs }, last, threads);

    const f = call.scores(q, k, scale);
    const { valueWidth: wide } = sizes;
    const values = { ...tables, ...sizes, f, x: v, y: q, state: S };
    const all = { ...values, wide, span, scale };
    context.run(output, all, o, [wide, heads, rows]);
    call.release();
  },

  /** The products of the recurrence, each with one factor left out. */
  linearAttentionBackward(inputs, outputs, attributes) {
    const { q, k, v, decay, bias, dO } = inputs;
    const { sequences, scale, temperature } = attributes;
    const call = new Call(context, inputs, sequences, temperature);
    const { sizes, tables, heads, rows, spans } = call;
    const { width, valueWidth } = sizes;
    const all = { ...tables, ...sizes, span };
    const [S, G] = [call.states(), call.states()];
    const none = { initial: k, hasInitial: 0 };
    const threads = call.stateThreads();
    context.run(states, { ...all, ...none, k, v }, S, threads);
    context.run(stateGradients, { ...all, q, dO, scale }, G, threads);

    const p = call.scores(q, k, scale);
    const d = call.scores(dO, v, scale);
    const gradient = (
      called: typeof output,
      operands: Readonly<Record<'f' | 'x' | 'y' | 'state', Place>>,
      target: Tensor,
      stateScale: number,
    ) => {
      const wide = extent(target, 2);
      const values = { ...all, ...operands, wide, scale: stateScale };
      context.run(called, values, target, [wide, heads, rows]);
    };
    gradient(queryGradient, { f: d, x: k, y: dO, state: S }, outputs.dQ, scale);
    // G holds the scale already.
    gradient(keyGradient, { f: d, x: q, y: v, state: G }, outputs.dK, 1);
    gradient(valueGradient, { f: p, x: dO, y: k, state: G }, outputs.dV, 1);

    const c = call.scores(dO, v, 1, 0);
    const [old, future] = [call.scratch(rows), call.scratch(rows)];
    const both = call.scratch(spans);
    const each = [heads, rows] as const;
    context.run(
      fromBefore,
      { ...all, k: q, v: dO, state: S, scale },
      old,
      each,
    );
    context.run(toBehind, { ...all, k, v, state: G, scale: 1 }, future, each);
    const size = width * valueWidth;
    context.run(across, { ...all, S, G, size }, both, [heads, spans]);
    const { dDecay, dBias } = outputs;
    const dLog = call.scratch(rows);
    const parts = { ...all, p, c, old, future, both };
    context.run(logGradient, parts, dLog, each);
    const [plain, biased] = decayGradient;
    const called = bias ? biased : plain;
    const values = { dLog, decay, bias, heads, temperature };
    if (called) context.run(called, values, dDecay, each);
    if (dBias) {
      context.run(biasGradient, { dDecay, rows, heads }, dBias, [heads]);
    }
    call.release();
  },
});

interface Operands {
  readonly q: Tensor;
  readonly v: Tensor;
  readonly decay: Tensor;
  readonly bias?: Tensor | undefined;
}

/** What both directions work with; `release` gives it back. */
class Call {
  readonly rows: number;
  readonly heads: number;
  /** Spans of all sequences. */
  readonly spans: number;
  readonly sizes: Readonly<Record<'heads' | 'width' | 'valueWidth', number>>;
  readonly tables: Readonly<Record<'logs' | 'runs' | 'places', Memory>>;
  private readonly used: Memory[] = [];

  constructor(
    private readonly context: KernelContext,
    inputs: Operands,
    sequences: Sequences,
    temperature: number,
  ) {
    const { q, v, decay, bias } = inputs;
    const [rows = 0, heads = 0, width = 0] = q.shape;
    this.rows = rows;
    this.heads = heads;
    this.sizes = { heads, width, valueWidth: extent(v, 2) };
    const { runs, places } = spansOf(sequences, rows);
    this.spans = runs.length / 4;
    const logs = this.scratch(rows);
    const [plain, biased] = logDecays;
    const called = bias ? biased : plain;
    const values = { decay, bias, heads, temperature };
    if (called) context.run(called, values, logs, [heads, rows]);
    this.tables = {
      logs,
      runs: this.keep(context.table(runs)),
      places: this.keep(context.table(places)),
    };
  }

  keep(memory: Memory): Memory {
    this.used.push(memory);
    return memory;
  }

  /** `[rows, H]` */
  scratch(rows: number): Memory {
    return this.keep(this.context.scratch(rows * this.heads));
  }

  /** A state a span, `[spans, H, Dk, Dv]`. */
  states(): Memory {
    const { width, valueWidth } = this.sizes;
    return this.scratch(this.spans * width * valueWidth);
  }

  stateThreads(count = this.spans) {
    const { heads, width, valueWidth } = this.sizes;
    return [valueWidth, heads * width, count] as const;
  }

  /** `[N, H, span]` */
  scores(x: Tensor, y: Tensor, scale: number, decayed = 1): Memory {
    const { heads, rows, tables } = this;
    const s = this.scratch(rows * span);
    const values = { ...tables, x, y, heads, wide: extent(x, 2) };
    const threads = [span, heads, rows] as const;
    this.context.run(scores, { ...values, decayed, scale }, s, threads);
    return s;
  }

  release(): void {
    for (const memory of this.used) this.context.release(memory);
  }
}

/**
 * Sequences cut into spans: `runs [spans, 4]` and `places [N, 3]`, -1 where a
 * row belongs to no sequence.
 */
function spansOf(sequences: Sequences, rows: number) {
  const runs: number[] = [];
  const places = new Int32Array(rows * 3).fill(-1);
  sequences.list.forEach(({ queryStart, queryCount }, sequence) => {
    for (let i = 0; i < queryCount; i++) {
      const before = i % span;
      if (before === 0) runs.push(sequence, queryStart, i, queryCount);
      const end = Math.min(queryCount, i - before + span);
      const own = runs.length / 4 - 1;
      places.set([own, before, end - 1 - i], (queryStart + i) * 3);
    }
  });
  return { runs, places };
}
