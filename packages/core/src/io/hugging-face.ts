import { z } from 'zod';
import { ConfigError } from '../errors';
import {
  type ModelConfig,
  parseConfig,
  type RopeConfig,
} from '../model/config';
import type { NameFamily } from './names';

/** A configuration, and whose tensor names its checkpoint uses. */
export interface ForeignConfig {
  readonly config: ModelConfig;
  readonly family: NameFamily;
}

const count = z.int().positive();
const token = z.int().nonnegative();

const ropeParameters = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: z.number().positive().optional(),
  factor: z.number().positive().optional(),
  low_freq_factor: z.number().positive().optional(),
  high_freq_factor: z.number().positive().optional(),
  original_max_position_embeddings: count.optional(),
});

const common = {
  vocab_size: count,
  hidden_size: count,
  num_hidden_layers: count,
  max_position_embeddings: count.default(2048),
  hidden_act: z.enum(['silu', 'swish']).default('silu'),
  tie_word_embeddings: z.boolean().default(false),
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeParameters.nullish(),
  rope_parameters: ropeParameters.nullish(),
  bos_token_id: token.nullish(),
  eos_token_id: z.union([token, z.array(token)]).nullish(),
};

const refused = z.literal(false, 'only false is supported').optional();

const llama = z.looseObject({
  ...common,
  intermediate_size: count,
  num_attention_heads: count,
  num_key_value_heads: count.optional(),
  head_dim: count.nullish(),
  rms_norm_eps: z.number().positive().default(1e-6),
  sliding_window: count.nullish(),
  attention_bias: refused,
  mlp_bias: refused,
});

const deepseek = z.looseObject({
  ...common,
  intermediate_size: count,
  num_attention_heads: count,
  q_lora_rank: count.nullish(),
  kv_lora_rank: count,
  qk_nope_head_dim: count,
  qk_rope_head_dim: count,
  v_head_dim: count,
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_interleave: z.boolean().default(true),
  first_k_dense_replace: z.int().nonnegative().default(3),
  n_routed_experts: count.nullish(),
  attention_bias: refused,
});

const flaNsa = z.looseObject({
  ...common,
  hidden_ratio: z.number().positive().nullish(),
  intermediate_size: count.nullish(),
  num_heads: count,
  num_kv_heads: count.nullish(),
  head_dim: count.nullish(),
  block_size: count.default(64),
  block_counts: count.default(16),
  window_size: count.default(512),
  norm_eps: z.number().positive().default(1e-6),
  qkv_bias: refused,
});

/**
 * The model that a Hugging Face `config.json` describes: Llama, Mistral,
 * DeepSeek-V3 without experts, or flash-linear-attention's NSA.
 * @throws ConfigError naming the field that is wrong or not supported.
 */
export function fromHuggingFace(
  modelType: string,
  json: unknown,
  path: string,
): ForeignConfig {
  switch (modelType) {
    case 'llama':
    case 'mistral':
      return fromLlama(json, path, modelType);
    case 'deepseek_v3':
      return fromDeepseek(json, path);
    case 'nsa':
      return fromFlaNsa(json, path);
    default:
      throw new ConfigError(
        path,
        'model_type',
        `must be asa, llama, mistral, deepseek_v3 or nsa, got ${JSON.stringify(modelType)}`,
      );
  }
}

function fromLlama(
  json: unknown,
  path: string,
  modelType: 'llama' | 'mistral',
): ForeignConfig {
  const c = parse(llama, json, path);
  const heads = c.num_attention_heads;
  const window = modelType === 'mistral' ? c.sliding_window : undefined;
  const config = parseConfig(
    {
      ...sharedFields(c, path),
      intermediateSize: c.intermediate_size,
      normEps: c.rms_norm_eps,
      pattern: 'F',
      attention: {
        F: {
          kind: 'gqa',
          heads,
          keyValueHeads: c.num_key_value_heads ?? heads,
          headWidth: c.head_dim ?? c.hidden_size / heads,
          window: window ?? undefined,
        },
      },
    },
    path,
  );
  return { config, family: 'llama' };
}

function fromDeepseek(json: unknown, path: string): ForeignConfig {
  const c = parse(deepseek, json, path);
  if (c.n_routed_experts && c.first_k_dense_replace < c.num_hidden_layers) {
    throw new ConfigError(
      path,
      'first_k_dense_replace',
      `mixture-of-experts layers are not supported, got ${c.first_k_dense_replace} dense of ${c.num_hidden_layers} layers`,
    );
  }
  const shared = sharedFields(c, path);
  const config = parseConfig(
    {
      ...shared,
      rope: {
        ...shared.rope,
        style: c.rope_interleave ? 'interleaved' : 'half',
      },
      intermediateSize: c.intermediate_size,
      normEps: c.rms_norm_eps,
      pattern: 'F',
      attention: {
        F: {
          kind: 'mla',
          heads: c.num_attention_heads,
          contentWidth: c.qk_nope_head_dim,
          valueWidth: c.v_head_dim,
          ropeWidth: c.qk_rope_head_dim,
          latentWidth: c.kv_lora_rank,
          queryLatentWidth: c.q_lora_rank ?? undefined,
        },
      },
    },
    path,
  );
  return { config, family: 'deepseek' };
}

function fromFlaNsa(json: unknown, path: string): ForeignConfig {
  const c = parse(flaNsa, json, path);
  const headWidth = c.head_dim ?? c.hidden_size / c.num_heads;
  const blockSize = c.block_size;
  const config = parseConfig(
    {
      ...sharedFields(c, path),
      intermediateSize: c.intermediate_size ?? flaIntermediate(c),
      normEps: c.norm_eps,
      pattern: 'N',
      attention: {
        N: {
          kind: 'nsa',
          heads: c.num_heads,
          keyValueHeads: c.num_kv_heads ?? c.num_heads,
          headWidth,
          valueWidth: headWidth,
          window: c.window_size,
          compression: { kind: 'mean', length: blockSize, stride: blockSize },
          selection: { blockSize, count: c.block_counts },
        },
      },
    },
    path,
  );
  return { config, family: 'fla-nsa' };
}

/** Two thirds of `hidden * ratio`, rounded up to a multiple of 256. */
function flaIntermediate(c: {
  hidden_size: number;
  hidden_ratio?: number | null | undefined;
}): number {
  const wanted = Math.floor((c.hidden_size * (c.hidden_ratio ?? 4) * 2) / 3);
  return 256 * Math.ceil(wanted / 256);
}

type Common = z.infer<z.ZodObject<typeof common>>;

function sharedFields(c: Common, path: string) {
  const eos = c.eos_token_id ?? [];
  return {
    vocabularySize: c.vocab_size,
    hiddenSize: c.hidden_size,
    layers: c.num_hidden_layers,
    context: c.max_position_embeddings,
    tieEmbeddings: c.tie_word_embeddings,
    rope: ropeOf(c, path),
    bos: c.bos_token_id ?? undefined,
    eos: Array.isArray(eos) ? eos : [eos],
  };
}

function ropeOf(c: Common, path: string): RopeConfig {
  const given = c.rope_parameters ?? c.rope_scaling ?? {};
  const theta = given.rope_theta ?? c.rope_theta ?? 10_000;
  const type = given.rope_type ?? given.type ?? 'default';
  const need = <T>(field: keyof typeof given & string, value?: T): T => {
    if (value !== undefined) return value;
    throw new ConfigError(path, `rope_parameters.${field}`, 'is missing');
  };
  switch (type) {
    case 'default':
      return { theta, style: 'half' };
    case 'linear':
      return {
        theta,
        style: 'half',
        scaling: { kind: 'linear', factor: need('factor', given.factor) },
      };
    case 'llama3':
      return {
        theta,
        style: 'half',
        scaling: {
          kind: 'llama3',
          factor: need('factor', given.factor),
          lowFrequencyFactor: need('low_freq_factor', given.low_freq_factor),
          highFrequencyFactor: need('high_freq_factor', given.high_freq_factor),
          originalContext: need(
            'original_max_position_embeddings',
            given.original_max_position_embeddings,
          ),
        },
      };
    default:
      throw new ConfigError(
        path,
        'rope_parameters.rope_type',
        `must be default, linear or llama3, got ${JSON.stringify(type)}`,
      );
  }
}

function parse<T>(schema: z.ZodType<T>, json: unknown, path: string): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new ConfigError(
    path,
    issue?.path.join('.') || undefined,
    issue?.message ?? 'invalid',
  );
}
