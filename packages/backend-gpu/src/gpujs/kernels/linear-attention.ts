import type { Sequences } from '@asa/core';
import { program, quotient } from '../program';
import type { KernelContext, Kernels } from './context';

/** Steps from one kept state to the next. */
const span = 32;

/** log a = logsigmoid(decay + bias) / temperature; `[N, H]` */
const logDecay = (bias: boolean) =>
  program(
    bias ? 'logDecaysBiased' : 'logDecays',
    {
      arrays: ['decay', ...(bias ? ['bias'] : [])],
      integers: ['heads'],
      reals: ['temperature'],
    },
    `const x = decay[this.thread.y * heads + this.thread.x]${bias ? ' + bias[this.thread.x]' : ''};
  return (Math.min(x, 0) - Math.log(1 + Math.exp(-Math.abs(x)))) / temperature;`,
  );
const logDecaysPlain = logDecay(false);
const logDecaysBiased = logDecay(true);

/**
 * S_t = a_t S_{t-1} + k_t v_t^T, from a sequence's first state over some
 * steps: columns of `runs` are the sequence, its first row, and the steps.
 * Threads: value channel j, head and key channel i, run.
 */
const states = program(
  'linearStates',
  {
    arrays: ['k', 'v', 'logs', 'initial', 'runs'],
    integers: ['heads', 'width', 'valueWidth', 'hasInitial'],
  },
  `const head = ${quotient('this.thread.y', 'width')};
  const sequence = runs[this.thread.z * 3];
  const start = runs[this.thread.z * 3 + 1];
  const steps = runs[this.thread.z * 3 + 2];
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
 * What step u of a span gives to the query at step t of it:
 * a_{u+1} .. a_t (q_t . k_u) scale. Columns of `places` are the run whose state
 * stands before the span, and the steps since. Threads: u, head, query.
 */
const scores = program(
  'linearScores',
  {
    arrays: ['q', 'k', 'logs', 'places'],
    integers: ['heads', 'width'],
    reals: ['scale'],
  },
  `const steps = places[this.thread.z * 2 + 1];
  if (this.thread.x > steps) { return 0; }
  const first = this.thread.z - steps;
  let log = 0;
  for (let i = 0; i < steps; i++) {
    if (i >= this.thread.x) {
      log += logs[(Math.floor(first) + i + 1) * heads + this.thread.y];
    }
  }
  let dot = 0;
  for (let c = 0; c < width; c++) {
    dot += q[(this.thread.z * heads + this.thread.y) * width + c]
      * k[((Math.floor(first) + this.thread.x) * heads + this.thread.y) * width
        + c];
  }
  return Math.exp(log) * dot * scale;`,
);

/** o_t = sum over u of the scores v_u + a_first .. a_t scale S^T q_t */
const output = program(
  'linearAttention',
  {
    arrays: ['q', 'v', 's', 'logs', 'state', 'places'],
    integers: ['heads', 'width', 'valueWidth', 'span'],
    reals: ['scale'],
  },
  `const run = places[this.thread.z * 2];
  if (run < 0) { return 0; }
  const steps = places[this.thread.z * 2 + 1];
  const first = this.thread.z - steps;
  let sum = 0;
  let log = 0;
  for (let u = 0; u <= steps; u++) {
    log += logs[(Math.floor(first) + u) * heads + this.thread.y];
    sum += s[(this.thread.z * heads + this.thread.y) * span + u]
      * v[((Math.floor(first) + u) * heads + this.thread.y) * valueWidth
        + this.thread.x];
  }
  let old = 0;
  for (let i = 0; i < width; i++) {
    old += q[(this.thread.z * heads + this.thread.y) * width + i]
      * state[((Math.floor(run) * heads + this.thread.y) * width + i)
        * valueWidth + this.thread.x];
  }
  return sum + Math.exp(log) * scale * old;`,
);

export const linearAttentionKernels = (
  context: KernelContext,
): Kernels<'linearAttention'> => ({
  /**
   * S_t = a_t S_{t-1} + k_t v_t^T
   * o_t = scale S_t^T q_t
   */
  linearAttention({ q, k, v, decay, bias, state }, { o, last }, attributes) {
    const [rows = 0, heads = 0, width = 0] = q.shape;
    const [, , valueWidth = 0] = v.shape;
    const { sequences, scale, temperature } = attributes;
    const logs = context.scratch(rows * heads);
    const decays = { decay, bias, heads, temperature };
    const called = bias ? logDecaysBiased : logDecaysPlain;
    context.run(called, decays, logs, [heads, rows]);

    const { runs, places } = spansOf(sequences, rows);
    const sizes = { heads, width, valueWidth };
    const hasInitial = state ? 1 : 0;
    const recurrence = {
      k,
      v,
      logs,
      initial: state ?? k,
      ...sizes,
      hasInitial,
    };
    const runTable = context.table(runs);
    const count = runs.length / 3;
    const kept = context.scratch(count * heads * width * valueWidth);
    const threads = [valueWidth, heads * width, count] as const;
    context.run(states, { ...recurrence, runs: runTable }, kept, threads);
    const ends = context.table(
      sequences.list.flatMap((s, i) => [i, s.queryStart, s.queryCount]),
    );
    context.run(states, { ...recurrence, runs: ends }, last, [
      valueWidth,
      heads * width,
      sequences.count,
    ]);

    const placeTable = context.table(places);
    const s = context.scratch(rows * heads * span);
    const operands = { q, k, v, logs, places: placeTable, scale, ...sizes };
    context.run(scores, operands, s, [span, heads, rows]);
    context.run(output, { ...operands, s, state: kept, span }, o, [
      valueWidth,
      heads,
      rows,
    ]);
    const used = [logs, runTable, kept, ends, placeTable, s];
    for (const memory of used) context.release(memory);
  },
});

/**
 * Sequences cut into spans. `runs [R, 3]` lead to the state before each span;
 * `places [N, 2]` say of each row which run and how many steps behind it, -1
 * where it belongs to no sequence.
 */
function spansOf(sequences: Sequences, rows: number) {
  const runs: number[] = [];
  const places = new Int32Array(rows * 2).fill(-1);
  sequences.list.forEach(({ queryStart, queryCount }, sequence) => {
    for (let i = 0; i < queryCount; i++) {
      if (i % span === 0) runs.push(sequence, queryStart, i);
      places.set([runs.length / 3 - 1, i % span], (queryStart + i) * 2);
    }
  });
  return { runs, places };
}
