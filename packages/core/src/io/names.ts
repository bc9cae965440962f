import type { ParameterSpec } from '../layers/parameters';
import type { ModelConfig } from '../model/config';
import { layerAttention } from '../model/config';
import { modelParameters } from '../model/parameters';

/**
 * Where a parameter lies in a checkpoint: a whole tensor, or in each of
 * `heads` groups of `of` rows the rows `[offset, offset + rows)`.
 */
export interface Place {
  readonly parameter: ParameterSpec;
  readonly tensor: string;
  readonly slice?: RowSlice;
}

export interface RowSlice {
  readonly heads: number;
  readonly of: number;
  readonly offset: number;
  readonly rows: number;
}

/** Families whose checkpoints use names of their own. */
export type NameFamily = 'asa' | 'llama' | 'deepseek' | 'fla-nsa';

/** The place of every parameter of a model in a family's checkpoints. */
export function places(config: ModelConfig, family: NameFamily): Place[] {
  const parameters = modelParameters(config);
  if (family === 'deepseek') {
    return parameters.map((p) => deepseekPlace(p, config));
  }
  if (family === 'fla-nsa') {
    return parameters.map((p) => ({ parameter: p, tensor: flaName(p.name) }));
  }
  return parameters.map((parameter) => ({
    parameter,
    tensor: parameter.name,
  }));
}

/** flash-linear-attention's names of its NSA model. */
function flaName(name: string): string {
  return name
    .replace('model.embed_tokens.', 'model.embeddings.')
    .replace('.self_attn.', '.attn.')
    .replace('.input_layernorm.', '.attn_norm.')
    .replace('.post_attention_layernorm.', '.mlp_norm.');
}

/**
 * DeepSeek's tensors hold several of our matrices: content and rotary rows of
 * each query head, latent and rotary rows of the down-projection, key and
 * value rows of each head of the up-projection.
 */
function deepseekPlace(parameter: ParameterSpec, config: ModelConfig): Place {
  const found = /^model\.layers\.(\d+)\.self_attn\.(.+)$/.exec(parameter.name);
  const attention = found && layerAttention(config)[Number(found[1])];
  if (!found || attention?.kind !== 'mla') {
    return { parameter, tensor: parameter.name };
  }
  const { heads, contentWidth, ropeWidth, latentWidth, valueWidth } = attention;
  const at = (name: string, slice?: RowSlice): Place => ({
    parameter,
    tensor: `model.layers.${found[1]}.self_attn.${name}`,
    ...(slice && { slice }),
  });
  const queryName = attention.queryLatentWidth ? 'q_b_proj' : 'q_proj';
  const query = { heads, of: contentWidth + ropeWidth };
  const down = { heads: 1, of: latentWidth + ropeWidth };
  const up = { heads, of: contentWidth + valueWidth };
  const first = (rows: number) => ({ offset: 0, rows });
  const last = (of: number, rows: number) => ({ offset: of - rows, rows });
  switch (found[2]) {
    case 'q_down_proj.weight':
      return at('q_a_proj.weight');
    case 'q_down_norm.weight':
      return at('q_a_layernorm.weight');
    case 'q_up_proj.weight':
      return at(`${queryName}.weight`, { ...query, ...first(contentWidth) });
    case 'q_rope_proj.weight':
      return at(`${queryName}.weight`, {
        ...query,
        ...last(query.of, ropeWidth),
      });
    case 'kv_down_proj.weight':
      return at('kv_a_proj_with_mqa.weight', {
        ...down,
        ...first(latentWidth),
      });
    case 'k_rope_proj.weight':
      return at('kv_a_proj_with_mqa.weight', {
        ...down,
        ...last(down.of, ropeWidth),
      });
    case 'kv_down_norm.weight':
      return at('kv_a_layernorm.weight');
    case 'k_up_proj.weight':
      return at('kv_b_proj.weight', { ...up, ...first(contentWidth) });
    case 'v_up_proj.weight':
      return at('kv_b_proj.weight', { ...up, ...last(up.of, valueWidth) });
    default:
      return { parameter, tensor: parameter.name };
  }
}

/** Copies a slice's rows out of the whole tensor, or back into it. */
export function copySlice(
  whole: Float32Array | Float64Array,
  part: Float32Array | Float64Array,
  { heads, of, offset, rows }: RowSlice,
  direction: 'out' | 'in',
): void {
  const columns = part.length / (heads * rows);
  const size = rows * columns;
  for (let head = 0; head < heads; head++) {
    const from = (head * of + offset) * columns;
    if (direction === 'out') {
      part.set(whole.subarray(from, from + size), head * size);
    } else {
      whole.set(part.subarray(head * size, (head + 1) * size), from);
    }
  }
}
