import type { AttentionConfig, ModelConfig } from '../model/config';
import { swiglu } from '../ops/swiglu';
import type { Tensor } from '../tensor';
import { type LayerContext, linear, linears, norm } from './context';
import { gatedLinear, linearParameters } from './gated-linear';
import { gla, glaParameters } from './gla';
import { gqa, gqaParameters } from './gqa';
import { mla, mlaParameters } from './mla';
import { nsa, nsaParameters } from './nsa';
import {
  constant,
  matrix,
  type ParameterSpec,
  partOf,
  type Weights,
  within,
} from './parameters';

/** `x += attention(norm(x)); x += swiglu(norm(x))`. Source: maths.md §1. */
export function block(
  context: LayerContext,
  x: Tensor,
  weights: Weights,
  config: AttentionConfig,
): Tensor {
  const y = attend(
    context,
    norm(context, x, weights('input_layernorm.weight')),
    partOf(weights, 'self_attn'),
    config,
    x,
  );
  return feedForward(
    context,
    norm(context, y, weights('post_attention_layernorm.weight')),
    partOf(weights, 'mlp'),
    y,
  );
}

export function blockParameters(
  config: AttentionConfig,
  { hiddenSize, intermediateSize }: ModelConfig,
): ParameterSpec[] {
  return [
    constant('input_layernorm.weight', [hiddenSize], 1),
    ...within('self_attn', attentionParameters(config, hiddenSize)),
    constant('post_attention_layernorm.weight', [hiddenSize], 1),
    matrix('mlp.gate_proj.weight', intermediateSize, hiddenSize),
    matrix('mlp.up_proj.weight', intermediateSize, hiddenSize),
    matrix('mlp.down_proj.weight', hiddenSize, intermediateSize),
  ];
}

/** `plus + W_down (silu(W_gate x) * W_up x)`. Source: arXiv 2002.05202. */
function feedForward(
  context: LayerContext,
  x: Tensor,
  weights: Weights,
  plus: Tensor,
): Tensor {
  const product = linears(context, x, weights, [
    'gate_proj.weight',
    'up_proj.weight',
  ]);
  const gate = product('gate_proj.weight');
  const up = product('up_proj.weight');
  const { y } = context.scope.run(swiglu, { gate, up }, {});
  return linear(context, y, weights('down_proj.weight'), plus);
}

/**
 * The attention of a layer, whatever its kind. `h [N, hidden]` to the same;
 * `plus`, the residual, is added by the last product.
 */
export function attend(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  config: AttentionConfig,
  plus?: Tensor,
): Tensor {
  switch (config.kind) {
    case 'gqa':
      return gqa(context, h, weights, config, plus);
    case 'mla':
      return mla(context, h, weights, config, plus);
    case 'gla':
      return gla(context, h, weights, config, plus);
    case 'nsa':
      return nsa(context, h, weights, config, plus);
    case 'linear':
      return gatedLinear(context, h, weights, config, plus);
  }
}

export function attentionParameters(
  config: AttentionConfig,
  hidden: number,
): ParameterSpec[] {
  switch (config.kind) {
    case 'gqa':
      return gqaParameters(config, hidden);
    case 'mla':
      return mlaParameters(config, hidden);
    case 'gla':
      return glaParameters(config, hidden);
    case 'nsa':
      return nsaParameters(config, hidden);
    case 'linear':
      return linearParameters(config, hidden);
  }
}
