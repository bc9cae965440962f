import type { LinearConfig } from '../model/config';
import { linearAttention } from '../ops/linear-attention';
import { swiglu } from '../ops/swiglu';
import type { Tensor } from '../tensor';
import { joinHeads, type LayerContext, linear, norm, project } from './context';
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
  { heads, keyWidth, valueWidth, chunk, temperature }: LinearConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past } = context;
  const rows = h.shape[0] ?? 0;
  const head = (name: string, width: number) =>
    project(context, h, weights(`${name}_proj.weight`), width);
  const v = head('v', valueWidth);
  const visible = past.extend('none', {});
  const { o, last } = scope.run(
    linearAttention,
    {
      q: head('q', keyWidth),
      k: head('k', keyWidth),
      v,
      decay: head('decay', 1).reshape([rows, heads]),
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
  const gate = linear(context, h, weights('gate_proj.weight'));
  const normed = joinHeads(norm(context, o, weights('o_norm.weight')));
  const { y } = scope.run(swiglu, { gate, up: normed }, {});
  return linear(context, y, weights('o_proj.weight'), plus);
}
