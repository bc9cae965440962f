import type { MlaConfig } from '../model/config';
import { attention } from '../ops/attention';
import type { Tensor } from '../tensor';
import { joinHeads, type LayerContext, linear } from './context';
import {
  latentParameters,
  latentReading,
  latentScale,
  latents,
} from './latent';
import type { ParameterSpec, Weights } from './parameters';

export function mlaParameters(
  config: MlaConfig,
  hidden: number,
): ParameterSpec[] {
  return latentParameters(config, hidden, 1);
}

/**
 * Multi-head latent attention: the local layer with a window, DeepSeek's
 * without. `h [N, hidden]` to `[N, hidden]`. Source: maths.md §2;
 * DeepSeek-V2, arXiv 2405.04434.
 */
export function mla(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  config: MlaConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past } = context;
  const { qC, qR, rows } = latents(context, h, weights, config);
  const visible = past.extend('latent', rows, config.window);
  const { c, kR } = visible.rows;
  const cheaper = visible.compact ? 'expanded' : 'absorbed';
  const form = context.form === 'auto' ? cheaper : context.form;
  const { q, read, values } = latentReading(context, qC, weights, form);
  const { o } = scope.run(
    attention,
    { q, ...read(c), qRope: qR, kRope: kR },
    {
      sequences: past.sequences(visible),
      scale: latentScale(config),
      window: config.window,
    },
  );
  return linear(context, joinHeads(values(o)), weights('o_proj.weight'), plus);
}
