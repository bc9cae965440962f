import type { Tensor } from '@asa/core';
import { floats, type Kernels } from './operands';

export const linearAttentionKernels: Kernels<
  'linearAttention' | 'linearAttentionBackward'
> = {
  /**
   * S_t = a_t S_{t-1} + k_t v_t^T
   * o_t = scale S_t^T q_t
   */
  linearAttention(inputs, outputs, { sequences, scale, temperature }) {
    const [, heads = 0, width = 0] = inputs.q.shape;
    const valueWidth = inputs.v.shape[2] ?? 0;
    const q = floats(inputs.q);
    const o = floats(outputs.o);
    const last = floats(outputs.last);
    const initial = inputs.state && floats(inputs.state);
    o.fill(0);
    sequences.list.forEach(({ queryStart, queryCount }, sequence) => {
      for (let h = 0; h < heads; h++) {
        const step = recurrence(inputs, temperature, h);
        const at = (sequence * heads + h) * width * valueWidth;
        const S = new Float64Array(width * valueWidth);
        if (initial) S.set(initial.subarray(at, at + S.length));
        for (let t = queryStart; t < queryStart + queryCount; t++) {
          step(S, t);
          const row = t * heads + h;
          for (let j = 0; j < valueWidth; j++) {
            let sum = 0;
            for (let i = 0; i < width; i++) {
              sum +=
                (S[i * valueWidth + j] as number) *
                (q[row * width + i] as number);
            }
            o[row * valueWidth + j] = scale * sum;
          }
        }
        last.set(S, at);
      }
    });
  },

  /**
   * Behind the last query dS = 0; then, backwards in time,
   * dS_t = a_{t+1} dS_{t+1} + scale q_t dO_t^T
   * dQ_t = scale S_t dO_t,  dK_t = dS_t v_t,  dV_t = dS_t^T k_t
   * d(log a_t) = a_t sum(dS_t S_{t-1})
   * dDecay_t = d(log a_t) (1 - sigmoid(decay_t + bias)) / temperature
   * dBias = sum_t dDecay_t
   */
  linearAttentionBackward(inputs, outputs, attributes) {
    const { sequences, scale, temperature } = attributes;
    const [, heads = 0, width = 0] = inputs.q.shape;
    const valueWidth = inputs.v.shape[2] ?? 0;
    const q = floats(inputs.q);
    const k = floats(inputs.k);
    const v = floats(inputs.v);
    const decay = floats(inputs.decay);
    const bias = inputs.bias && floats(inputs.bias);
    const dO = floats(inputs.dO);
    const dQ = floats(outputs.dQ);
    const dK = floats(outputs.dK);
    const dV = floats(outputs.dV);
    const dDecay = floats(outputs.dDecay);
    const biasSums = new Float64Array(heads);
    for (const gradient of [dQ, dK, dV, dDecay]) gradient.fill(0);

    for (const { queryStart, queryCount } of sequences.list) {
      for (let h = 0; h < heads; h++) {
        const step = recurrence(inputs, temperature, h);
        const dS = new Float64Array(width * valueWidth);
        const dv = new Float64Array(valueWidth);
        backwards(queryStart, queryCount, dS.length, step, (t, before, S) => {
          const row = t * heads + h;
          const at = row * width;
          const vAt = row * valueWidth;
          const logit = (decay[row] as number) + (bias?.[h] ?? 0);
          const a = decayFactor(logit, temperature);
          let dA = 0;
          dv.fill(0);
          for (let i = 0; i < width; i++) {
            const qi = scale * (q[at + i] as number);
            const ki = k[at + i] as number;
            let dq = 0;
            let dk = 0;
            for (let j = 0; j < valueWidth; j++) {
              const slot = i * valueWidth + j;
              const dOj = dO[vAt + j] as number;
              const d = (dS[slot] as number) + qi * dOj;
              dq += (S[slot] as number) * dOj;
              dk += d * (v[vAt + j] as number);
              dv[j] = (dv[j] as number) + d * ki;
              dA += d * (before[slot] as number);
              dS[slot] = a * d;
            }
            dQ[at + i] = scale * dq;
            dK[at + i] = dk;
          }
          dV.set(dv, vAt);
          const dLogit = (dA * a * sigmoid(-logit)) / temperature;
          dDecay[row] = dLogit;
          biasSums[h] = (biasSums[h] as number) + dLogit;
        });
      }
    }
    if (outputs.dBias) floats(outputs.dBias).set(biasSums);
  },
};

/** S becomes a_t S + k_t v_t^T. */
type Step = (S: Float64Array, t: number) => void;

function recurrence(
  inputs: Readonly<Record<'k' | 'v' | 'decay', Tensor>> & {
    readonly bias?: Tensor | undefined;
  },
  temperature: number,
  head: number,
): Step {
  const [, heads = 0, width = 0] = inputs.k.shape;
  const valueWidth = inputs.v.shape[2] ?? 0;
  const k = floats(inputs.k);
  const v = floats(inputs.v);
  const decay = floats(inputs.decay);
  const bias = inputs.bias ? (floats(inputs.bias)[head] as number) : 0;
  return (S, t) => {
    const row = t * heads + head;
    const a = decayFactor((decay[row] as number) + bias, temperature);
    for (let i = 0; i < width; i++) {
      const ki = k[row * width + i] as number;
      for (let j = 0; j < valueWidth; j++) {
        const slot = i * valueWidth + j;
        S[slot] =
          a * (S[slot] as number) + ki * (v[row * valueWidth + j] as number);
      }
    }
  };
}

/**
 * Visits a sequence from its last step to its first, with the states before
 * and behind each step. The states are computed again from one kept every
 * `sqrt(count)` steps: twice the work, but memory for two times the root.
 */
function backwards(
  start: number,
  count: number,
  stateSize: number,
  step: Step,
  visit: (t: number, before: Float64Array, behind: Float64Array) => void,
): void {
  const span = Math.max(1, Math.ceil(Math.sqrt(count)));
  const kept: Float64Array[] = [];
  const running = new Float64Array(stateSize);
  for (let t = 0; t < count; t++) {
    if (t % span === 0) kept.push(running.slice());
    step(running, start + t);
  }
  for (let segment = kept.length - 1; segment >= 0; segment--) {
    const first = segment * span;
    const end = Math.min(first + span, count);
    let state = kept[segment] as Float64Array;
    const states = [state];
    for (let t = first; t < end; t++) {
      state = state.slice();
      step(state, start + t);
      states.push(state);
    }
    for (let t = end - 1; t >= first; t--) {
      visit(
        start + t,
        states[t - first] as Float64Array,
        states[t - first + 1] as Float64Array,
      );
    }
  }
}

/** a = sigmoid(decay)^(1 / temperature) */
function decayFactor(decay: number, temperature: number): number {
  return Math.exp(logSigmoid(decay) / temperature);
}

function logSigmoid(x: number): number {
  return Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
