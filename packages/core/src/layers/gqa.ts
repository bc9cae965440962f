import type { GqaConfig } from '../model/config';
import { attention } from '../ops/attention';
import type { Tensor } from '../tensor';
import {
  joinHeads,
  type LayerContext,
  linear,
  linears,
  splitHeads,
} from './context';
import { matrix, type ParameterSpec, type Weights } from './parameters';

export function gqaParameters(
  { heads, keyValueHeads, headWidth }: GqaConfig,
  hidden: number,
): ParameterSpec[] {
  return [
    matrix('q_proj.weight', heads * headWidth, hidden),
    matrix('k_proj.weight', keyValueHeads * headWidth, hidden),
    matrix('v_proj.weight', keyValueHeads * headWidth, hidden),
    matrix('o_proj.weight', hidden, heads * headWidth),
  ];
}

/**
 * Grouped-query attention, rotary on whole heads; windowed where `window` is
 * given. `h [N, hidden]` to `[N, hidden]`. Source: arXiv 2305.13245.
 */
export function gqa(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  { headWidth, window }: GqaConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past, rotateMany } = context;
  const product = linears(context, h, weights, [
    'q_proj.weight',
    'k_proj.weight',
    'v_proj.weight',
  ]);
  const head = (name: string) =>
    splitHeads(product(`${name}_proj.weight`), headWidth);
  const [q, k] = rotateMany([head('q'), head('k')]);
  const visible = past.extend('kv', { k, v: head('v') }, window);
  const { o } = scope.run(
    attention,
    { q, ...visible.rows },
    {
      sequences: past.sequences(visible),
      scale: 1 / Math.sqrt(headWidth),
      window,
    },
  );
  return linear(context, joinHeads(o), weights('o_proj.weight'), plus);
}
