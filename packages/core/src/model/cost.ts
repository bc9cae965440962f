import { sizeOf } from '../tensor';
import {
  type AttentionConfig,
  layerAttention,
  type ModelConfig,
} from './config';
import { modelParameters } from './parameters';

/** Parameters by part of the model. */
export interface ParameterReport {
  readonly embedding: number;
  readonly attention: number;
  readonly feedForward: number;
  readonly norms: number;
  readonly head: number;
  readonly total: number;
}

export function parameterReport(config: ModelConfig): ParameterReport {
  const sum = { embedding: 0, attention: 0, feedForward: 0, norms: 0, head: 0 };
  let total = 0;
  for (const { name, shape } of modelParameters(config)) {
    const size = sizeOf(shape);
    total += size;
    sum[partOf(name)] += size;
  }
  return { ...sum, total };
}

function partOf(name: string): keyof Omit<ParameterReport, 'total'> {
  if (name.startsWith('model.embed_tokens.')) return 'embedding';
  if (name.startsWith('lm_head.')) return 'head';
  if (name.includes('.self_attn.')) return 'attention';
  return name.includes('.mlp.') ? 'feedForward' : 'norms';
}

/** Floating-point operations of one new token's forward pass. */
export interface FlopReport {
  /** Two for each weight that a token is multiplied with. */
  readonly matrices: number;
  /** Scores and sums over keys, at this context length. */
  readonly attention: number;
  readonly total: number;
}

/**
 * FLOPs of the token at position `context - 1`; a multiplication and an
 * addition are two. Norms, softmax and the like are not counted.
 */
export function flopsPerToken(
  config: ModelConfig,
  context: number,
): FlopReport {
  const { embedding, norms, total } = parameterReport(config);
  const head = config.tieEmbeddings ? embedding : 0;
  const matrices = 2 * (total - embedding - norms + head);
  const attention = layerAttention(config).reduce(
    (sum, layer) => sum + attentionFlops(layer, context),
    0,
  );
  return { matrices, attention, total: matrices + attention };
}

/** `2 keys heads (key width + value width)`, summed over the branches. */
function attentionFlops(attention: AttentionConfig, context: number): number {
  const over = (keys: number, keyWidth: number, valueWidth: number) =>
    2 * Math.max(0, keys) * attention.heads * (keyWidth + valueWidth);
  switch (attention.kind) {
    case 'gqa': {
      const { headWidth, window = context } = attention;
      return over(Math.min(window, context), headWidth, headWidth);
    }
    case 'mla': {
      const { latentWidth, ropeWidth, window = context } = attention;
      const keys = Math.min(window, context);
      return over(keys, latentWidth + ropeWidth, latentWidth);
    }
    case 'gla': {
      const { latentWidth, ropeWidth } = attention;
      return over(
        sparseKeys(attention, context),
        latentWidth + ropeWidth,
        latentWidth,
      );
    }
    case 'nsa': {
      const { headWidth, valueWidth, window } = attention;
      const keys = sparseKeys(attention, context) + Math.min(window, context);
      return over(keys, headWidth, valueWidth);
    }
    case 'linear': {
      const { heads, keyWidth, valueWidth } = attention;
      return 6 * heads * keyWidth * valueWidth;
    }
  }
}

/** Compressed rows and selected tokens that the last query reads. */
function sparseKeys(
  { compression, selection }: Extract<AttentionConfig, { compression: object }>,
  context: number,
): number {
  const { length, stride } = compression;
  const blocks = Math.floor((context - length) / stride) + 1;
  const selected = selection.count * selection.blockSize;
  return Math.max(0, blocks) + Math.min(selected, context);
}
