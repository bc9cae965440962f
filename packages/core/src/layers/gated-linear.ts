import type { LinearConfig } from '../model/config';
import { linearAttention } from '../ops/linear-attention';
import { swiglu } from '../ops/swiglu';
import type { Tensor } from '../tensor';
import {
  joinHeads,
  type LayerContext,
  linear,
  linears,
  norm,
  splitHeads,
} from './context';
import {
  constant,
  matrix,
  type ParameterSpec,
  type Weights,
} from './parameters';

/** Starts a head's decay near `sigmoid(3)^(1/16) = 0.997` a token. */
const initialDecay = 3;

export function linearParameters(
  { heads, keyWidth, valueWidth }: LinearConfig,
  hidden: number,
): ParameterSpec[] {
  return [
    matrix('q_proj.weight', heads * keyWidth, hidden),
    matrix('k_proj.weight', heads * keyWidth, hidden),
    matrix('v_proj.weight', heads * valueWidth, hidden),
    matrix('decay_proj.weight', heads, hidden),
    constant('decay_proj.bias', [heads], initialDecay),
    constant('o_norm.weight', [valueWidth], 1),
    matrix('gate_proj.weight', heads * valueWidth, hidden),
    matrix('o_proj.weight', hidden, heads * valueWidth),
  ];
}

/**
 * Gated linear attention in place of a window: a state of `Dk x Dv` a head
 * instead of a cache. `o = W_O (norm(S_t^T q_t) * silu(W_G h))`.
 * Source: arXiv 2312.06635.
 */
export function gatedLinear(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  { keyWidth, valueWidth, chunk, temperature }: LinearConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past } = context;
  const product = linears(context, h, weights, [
    'q_proj.weight',
    'k_proj.weight',
    'v_proj.weight',
    'decay_proj.weight',
    'gate_proj.weight',
  ]);
  const head = (name: string, width: number) =>
    splitHeads(product(`${name}_proj.weight`), width);
  const visible = past.extend('none', {});
  const { o, last } = scope.run(
    linearAttention,
    {
      q: head('q', keyWidth),
      k: head('k', keyWidth),
      v: head('v', valueWidth),
      decay: product('decay_proj.weight'),
      bias: weights('decay_proj.bias'),
      state: past.state(),
    },
    {
      sequences: past.sequences(visible),
      scale: 1 / Math.sqrt(keyWidth),
      temperature,
      chunk,
    },
  );
  past.rememberState(last);
  const gate = product('gate_proj.weight');
  const normed = joinHeads(norm(context, o, weights('o_norm.weight')));
  const { y } = scope.run(swiglu, { gate, up: normed }, {});
  return linear(context, y, weights('o_proj.weight'), plus);
}
