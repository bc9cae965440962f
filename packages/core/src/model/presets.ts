import { ConfigError } from '../errors';
import { type ModelConfig, type ModelConfigInput, parseConfig } from './config';
import { parameterCount } from './parameters';

/** Sizes that presets come in, and the attention they can have. */
export const presetSizes = ['tiny', '340m', '1.3b'] as const;
export const presetKinds = ['asa', 'nsa', 'full'] as const;
export type PresetSize = (typeof presetSizes)[number];
export type PresetKind = (typeof presetKinds)[number];

/** What a size fixes for all kinds. */
interface Size {
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly headWidth: number;
  /** Inner width of full attention's SwiGLU; the others' follows from it. */
  readonly intermediateSize: number;
  readonly vocabularySize: number;
  readonly context: number;
  readonly window: number;
  /** KV heads of NSA and latent groups of ASA. */
  readonly groups: number;
  readonly ropeWidth: number;
  readonly blockSize: number;
  readonly selected: number;
  readonly tieEmbeddings: boolean;
}

// 340m and 1.3b: the sizes that the paper trains; widths are ours, since its
// abstract gives none.
const sizes: Record<PresetSize, Size> = {
  tiny: {
    hiddenSize: 128,
    layers: 4,
    heads: 4,
    headWidth: 32,
    intermediateSize: 352,
    vocabularySize: 2048,
    context: 2048,
    window: 128,
    groups: 2,
    ropeWidth: 16,
    blockSize: 16,
    selected: 8,
    tieEmbeddings: true,
  },
  '340m': {
    hiddenSize: 1024,
    layers: 24,
    heads: 16,
    headWidth: 64,
    intermediateSize: 2816,
    vocabularySize: 32_000,
    context: 8192,
    window: 512,
    groups: 4,
    ropeWidth: 32,
    blockSize: 16,
    selected: 64,
    tieEmbeddings: false,
  },
  '1.3b': {
    hiddenSize: 2048,
    layers: 24,
    heads: 32,
    headWidth: 64,
    intermediateSize: 5632,
    vocabularySize: 32_000,
    context: 8192,
    window: 512,
    groups: 4,
    ropeWidth: 64,
    blockSize: 16,
    selected: 64,
    tieEmbeddings: false,
  },
};

/**
 * A preset configuration: `tiny`, `340m`, `1.3b` for ASA, or with `-asa`,
 * `-nsa`, `-full` behind. The three kinds of a size have the same number of
 * parameters, to within half a percent, by the width of their SwiGLU.
 * @param changes fields that replace the preset's.
 * @throws ConfigError for an unknown name.
 */
export function preset(
  name: string,
  changes: Partial<ModelConfigInput> = {},
): ModelConfig {
  const [, sizeName, kind = 'asa'] =
    /^(tiny|340m|1\.3b)(?:-(asa|nsa|full))?$/.exec(name) ?? [];
  const size = sizes[sizeName as PresetSize];
  if (!size) {
    throw new ConfigError(
      'preset',
      undefined,
      `must be ${presetSizes.join(', ')} with -${presetKinds.join(', -')} or nothing behind, got ${JSON.stringify(name)}`,
    );
  }
  const matched = matchParameters(build(size, kind as PresetKind), size);
  return parseConfig({ ...matched, ...changes }, `preset ${name}`);
}

function build(size: Size, kind: PresetKind): ModelConfig {
  const { vocabularySize, hiddenSize, intermediateSize } = size;
  const { layers, context, tieEmbeddings } = size;
  return parseConfig({
    vocabularySize,
    hiddenSize,
    intermediateSize,
    layers,
    context,
    tieEmbeddings,
    ...attentionOf(size, kind),
  });
}

function attentionOf(
  size: Size,
  kind: PresetKind,
): Pick<ModelConfigInput, 'pattern' | 'attention'> {
  const { heads, headWidth, window, groups, ropeWidth, blockSize } = size;
  const contentWidth = headWidth;
  const latent = { heads, contentWidth, valueWidth: headWidth, ropeWidth };
  const compression = { length: blockSize, stride: blockSize };
  const selection = { blockSize, count: size.selected };
  switch (kind) {
    case 'full':
      return {
        pattern: 'F',
        attention: {
          F: { kind: 'gqa', heads, keyValueHeads: groups, headWidth },
        },
      };
    case 'nsa':
      return {
        pattern: 'N',
        attention: {
          N: {
            kind: 'nsa',
            heads,
            keyValueHeads: groups,
            headWidth,
            valueWidth: headWidth,
            window,
            compression,
            selection,
          },
        },
      };
    case 'asa': {
      // A latent row is half of NSA's K and V: G dg + dR = n_kv dh.
      const row = groups * headWidth;
      return {
        pattern: 'GL',
        attention: {
          G: {
            kind: 'gla',
            ...latent,
            groups,
            latentWidth: (row - ropeWidth) / groups,
            compression,
            selection: { ...selection, sharing: 4 },
          },
          L: { kind: 'mla', ...latent, latentWidth: row - ropeWidth, window },
        },
      };
    }
  }
}

/** The SwiGLU width, a multiple of 4, that gives the count of full attention. */
function matchParameters(config: ModelConfig, size: Size): ModelConfig {
  const wanted = parameterCount(build(size, 'full'));
  const perUnit = 3 * config.hiddenSize * config.layers;
  const surplus = (parameterCount(config) - wanted) / perUnit;
  const intermediateSize =
    4 * Math.round((config.intermediateSize - surplus) / 4);
  return { ...config, intermediateSize };
}
