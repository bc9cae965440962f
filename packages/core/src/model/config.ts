import { z } from 'zod';
import { ConfigError } from '../errors';

const count = z.int().positive();

/** How a global layer compresses blocks. Source: maths.md §3. */
const compression = z.object({
  /** `phi`: plain or learned pooling, one matrix, or one hidden SiLU layer. */
  kind: z.enum(['mean', 'weighted', 'linear', 'mlp']).default('mean'),
  /** `l`: tokens of a compression block. */
  length: count,
  /** `d`: tokens from one block's start to the next. */
  stride: count,
  /** What becomes of the rotary keys under compression. */
  rope: z.enum(['rotated-mean', 'block-start', 'none']).default('rotated-mean'),
});

/** Which blocks a query attends to in full. Source: maths.md §3. */
const selection = z.object({
  /** `l'`: tokens of a selection block. */
  blockSize: count,
  /** `n`: blocks of a list, the forced ones included. */
  count,
  /** First blocks that are always chosen. */
  initial: z.int().nonnegative().default(1),
  /** Last blocks that are always chosen, the own one included. */
  local: count.default(2),
  /** `r`: queries that share one list. */
  sharing: count.default(1),
});

/** Full or windowed grouped-query attention (Llama, Mistral). */
const gqa = z.object({
  kind: z.literal('gqa'),
  heads: count,
  keyValueHeads: count,
  headWidth: count,
  window: count.optional(),
});

/** Widths of latent attention: `dh`, `dv`, `dR`, latent, query latent. */
const latentWidths = {
  heads: count,
  contentWidth: count,
  valueWidth: count,
  ropeWidth: count,
  latentWidth: count,
  queryLatentWidth: count.optional(),
};

/** Multi-head latent attention, in a window where one is given. */
const mla = z.object({
  kind: z.literal('mla'),
  ...latentWidths,
  window: count.optional(),
});

/** Group latent attention over compressed and selected blocks. */
const gla = z.object({
  kind: z.literal('gla'),
  ...latentWidths,
  groups: count,
  compression,
  selection,
  gateBias: z.boolean().default(true),
});

/** Native Sparse Attention, three branches. Source: arXiv 2502.11089. */
const nsa = z.object({
  kind: z.literal('nsa'),
  heads: count,
  keyValueHeads: count,
  headWidth: count,
  valueWidth: count,
  window: count,
  compression,
  selection,
  /** One K/V for all branches, or one each as in the paper. */
  keyValues: z.enum(['shared', 'independent']).default('shared'),
  gateBias: z.boolean().default(false),
});

/** Gated linear attention with a scalar decay, in place of a window. */
const linear = z.object({
  kind: z.literal('linear'),
  heads: count,
  keyWidth: count,
  valueWidth: count,
  chunk: count.default(64),
  temperature: z.number().positive().default(16),
});

const attentionSchema = z.discriminatedUnion('kind', [
  gqa,
  mla,
  gla,
  nsa,
  linear,
]);

const ropeSchema = z.object({
  theta: z.number().positive().default(10_000),
  style: z.enum(['half', 'interleaved']).default('half'),
  /** Stretched frequencies, as Hugging Face names them. */
  scaling: z
    .discriminatedUnion('kind', [
      z.object({ kind: z.literal('linear'), factor: z.number().positive() }),
      z.object({
        kind: z.literal('llama3'),
        factor: z.number().positive(),
        lowFrequencyFactor: z.number().positive(),
        highFrequencyFactor: z.number().positive(),
        originalContext: count,
      }),
    ])
    .optional(),
});

const modelSchema = z.object({
  vocabularySize: count,
  hiddenSize: count,
  /** Inner width of the SwiGLU block. */
  intermediateSize: count,
  layers: count,
  /**
   * The attention of each layer, by letter: a string repeated over the depth
   * (`GL` is ASA), or a list of `layers` letters.
   */
  pattern: z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]),
  /** What each letter stands for. */
  attention: z.record(z.string(), attentionSchema),
  normEps: z.number().positive().default(1e-6),
  rope: ropeSchema.prefault({}),
  tieEmbeddings: z.boolean().default(false),
  /** Longest context, in tokens. */
  context: count,
  bos: z.int().nonnegative().optional(),
  eos: z.array(z.int().nonnegative()).default([]),
});

export type CompressionConfig = z.infer<typeof compression>;
export type SelectionConfig = z.infer<typeof selection>;
export type GqaConfig = z.infer<typeof gqa>;
export type MlaConfig = z.infer<typeof mla>;
export type GlaConfig = z.infer<typeof gla>;
export type NsaConfig = z.infer<typeof nsa>;
export type LinearConfig = z.infer<typeof linear>;
export type AttentionConfig = z.infer<typeof attentionSchema>;
export type RopeConfig = z.infer<typeof ropeSchema>;
export type ModelConfig = z.infer<typeof modelSchema>;
/** What `parseConfig` accepts: defaults may be left out. */
export type ModelConfigInput = z.input<typeof modelSchema>;

/**
 * Checks a configuration and fills in the defaults.
 * @param path named in errors.
 * @throws ConfigError with the field that breaks a rule.
 */
export function parseConfig(value: unknown, path = 'config'): ModelConfig {
  const parsed = modelSchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ConfigError(
      path,
      issue?.path.join('.') || undefined,
      issue?.message ?? 'invalid',
    );
  }
  checkRelations(parsed.data, path);
  return parsed.data;
}

/** The attention of each layer, first to last. */
export function layerAttention(config: ModelConfig): AttentionConfig[] {
  const letters = [...config.pattern];
  return Array.from({ length: config.layers }, (_, layer) => {
    const letter = letters[layer % letters.length] ?? '';
    const attention = config.attention[letter];
    if (!attention) {
      throw new ConfigError('config', 'pattern', `no attention ${letter}`);
    }
    return attention;
  });
}

function checkRelations(config: ModelConfig, path: string): void {
  const fail = (field: string, rule: string): never => {
    throw new ConfigError(path, field, rule);
  };
  const { pattern, layers } = config;
  if (Array.isArray(pattern) && pattern.length !== layers) {
    fail(
      'pattern',
      `a list needs one letter a layer, got ${pattern.length} for ${layers} layers`,
    );
  }
  for (const letter of pattern) {
    if (!Object.hasOwn(config.attention, letter)) {
      fail('pattern', `letter ${JSON.stringify(letter)} is not in attention`);
    }
  }
  for (const [letter, attention] of Object.entries(config.attention)) {
    checkAttention(attention, (field, rule) =>
      fail(`attention.${letter}.${field}`, rule),
    );
  }
  const known = (field: string, id: number) => {
    if (id >= config.vocabularySize) {
      fail(
        field,
        `token ${id} is beyond the vocabulary of ${config.vocabularySize}`,
      );
    }
  };
  for (const id of config.eos) known('eos', id);
  if (config.bos !== undefined) known('bos', config.bos);
}

type Fail = (field: string, rule: string) => never;

function checkAttention(attention: AttentionConfig, fail: Fail): void {
  const divides = (part: string, value: number, whole: string, of: number) => {
    if (of % value !== 0) {
      fail(part, `must divide ${whole}, got ${value} and ${of}`);
    }
  };
  const even = (field: string, width: number) => {
    if (width % 2 !== 0) fail(field, `must be even, got ${width}`);
  };
  const { kind, heads } = attention;
  if (kind === 'gqa' || kind === 'nsa') {
    divides('keyValueHeads', attention.keyValueHeads, 'heads', heads);
    even('headWidth', attention.headWidth);
  }
  if (kind === 'mla' || kind === 'gla') even('ropeWidth', attention.ropeWidth);
  if (kind === 'gla') divides('groups', attention.groups, 'heads', heads);
  if (kind === 'gla' || kind === 'nsa') {
    const { compression, selection } = attention;
    const { stride, length } = compression;
    const { blockSize, sharing, count, initial, local } = selection;
    divides('compression.stride', stride, 'compression.length', length);
    divides('compression.stride', stride, 'selection.blockSize', blockSize);
    divides('selection.sharing', sharing, 'selection.blockSize', blockSize);
    if (count < initial + local) {
      fail(
        'selection.count',
        `must hold the forced blocks, initial + local = ${initial + local}, got ${count}`,
      );
    }
  }
}
