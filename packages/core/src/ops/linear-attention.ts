import type { Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import { checkScale } from './attention-operands';
import { type Operator, Rules, type SpecsOf } from './operator';

const rules = new Rules('linearAttention');

export interface LinearAttentionOperands {
  /** `[N, H, Dk]` */
  readonly q: Tensor;
  /** `[N, H, Dk]` */
  readonly k: Tensor;
  /** `[N, H, Dv]` */
  readonly v: Tensor;
  /** Logits of the decay, `[N, H]`. */
  readonly decay: Tensor;
  /** Added to the logits, `[H]`. */
  readonly bias?: Tensor | undefined;
  /** The state before the first query of each sequence, `[S, H, Dk, Dv]`. */
  readonly state?: Tensor | undefined;
}

export interface LinearAttentionAttributes {
  /** Only the query columns count: queries, keys and values are the same rows. */
  readonly sequences: Sequences;
  readonly scale: number;
  /** `log a = logsigmoid(decay + bias) / temperature`. */
  readonly temperature: number;
  /** Rows that are worked on as one matrix product; no effect on the result. */
  readonly chunk: number;
}

/**
 * Gated linear attention with one decay a head:
 * `S_t = a_t S_{t-1} + k_t v_t^T`, `o_t = scale S_t^T q_t`,
 * `a_t = sigmoid(decay_t + bias)^(1/temperature)`. Chunked and recurrent evaluation
 * are equal. `o [N, H, Dv]`; `last [S, H, Dk, Dv]` is the state behind the last
 * query, f32 (f64). The gradient starts each sequence at state 0.
 * Source: gated linear attention, arXiv 2312.06635, with a scalar gate as in
 * Mamba-2, arXiv 2405.21060.
 */
export const linearAttention: Operator<
  LinearAttentionOperands,
  { o: Tensor; last: Tensor },
  LinearAttentionAttributes
> = {
  name: 'linearAttention',
  infer(inputs, attributes) {
    const { rows, heads, width, valueWidth, dtype } = check(inputs, attributes);
    const stateShape = [attributes.sequences.count, heads, width, valueWidth];
    const stateType = dtype === 'f64' ? 'f64' : 'f32';
    if (inputs.state) {
      rules.shape('state', inputs.state, stateShape);
      rules.statistic('state', inputs.state, dtype);
    }
    return {
      o: { shape: [rows, heads, valueWidth], dtype },
      last: { shape: stateShape, dtype: stateType },
    };
  },
  gradient(scope, { inputs, attributes, gradients }) {
    if (!gradients.o) return {};
    const { q, k, v, decay, bias } = inputs;
    const d = scope.run(
      linearAttentionBackward,
      { q, k, v, decay, bias, dO: gradients.o },
      attributes,
    );
    return {
      q: d.dQ,
      k: d.dK,
      v: d.dV,
      decay: d.dDecay,
      bias: d.dBias,
    };
  },
};

export const linearAttentionBackward: Operator<
  Omit<LinearAttentionOperands, 'state'> & { readonly dO: Tensor },
  {
    dQ: Tensor;
    dK: Tensor;
    dV: Tensor;
    dDecay: Tensor;
    dBias?: Tensor | undefined;
  },
  LinearAttentionAttributes
> = {
  name: 'linearAttentionBackward',
  infer(inputs, attributes) {
    const { rows, heads, valueWidth, dtype } = check(inputs, attributes);
    rules.shape('dO', inputs.dO, [rows, heads, valueWidth]);
    const like = (spec: { shape: readonly number[] }) => ({
      shape: spec.shape,
      dtype,
    });
    return {
      dQ: like(inputs.q),
      dK: like(inputs.k),
      dV: like(inputs.v),
      dDecay: like(inputs.decay),
      ...(inputs.bias && { dBias: like(inputs.bias) }),
    };
  },
};

function check(
  inputs: SpecsOf<Omit<LinearAttentionOperands, 'state'>>,
  { sequences, scale, temperature, chunk }: LinearAttentionAttributes,
) {
  const { q, k, v, decay, bias } = inputs;
  const dtype = rules.floats({ q, k, v, decay, bias });
  const [rows, heads, width] = rules.extents('q', q, 3);
  rules.shape('k', k, q.shape);
  const [, , valueWidth] = rules.extents('v', v, 3);
  rules.shape('v', v, [rows, heads, valueWidth]);
  rules.shape('decay', decay, [rows, heads]);
  if (bias) rules.shape('bias', bias, [heads]);
  rules.rows('q', rows, sequences.queryRows);
  rules.positive('chunk', chunk);
  checkScale(rules, scale);
  rules.finite('temperature', temperature);
  return { rows, heads, width, valueWidth, dtype };
}
