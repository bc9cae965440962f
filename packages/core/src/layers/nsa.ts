import type { NsaConfig } from '../model/config';
import { attention } from '../ops/attention';
import { compressedAttention } from '../ops/compressed-attention';
import { gatedSum } from '../ops/gated-sum';
import { selectBlocks } from '../ops/select-blocks';
import { selectedAttention } from '../ops/selected-attention';
import type { Tensor } from '../tensor';
import {
  compressionParameters,
  compressRotary,
  compressRows,
} from './compression';
import {
  type Blocks,
  joinHeads,
  type LayerContext,
  linear,
  linears,
  splitHeads,
  type Visible,
} from './context';
import {
  constant,
  matrix,
  type ParameterSpec,
  partOf,
  type Weights,
  within,
} from './parameters';

type KeyValues = { k: Tensor; v: Tensor };
type Branch = 'compressed' | 'selected' | 'window';

const branchNames: readonly Branch[] = ['compressed', 'selected', 'window'];

export function nsaParameters(
  config: NsaConfig,
  hidden: number,
): ParameterSpec[] {
  const { heads, keyValueHeads, headWidth, valueWidth, compression } = config;
  const keyValues = [
    matrix('k_proj.weight', keyValueHeads * headWidth, hidden),
    matrix('v_proj.weight', keyValueHeads * valueWidth, hidden),
  ];
  return [
    matrix('q_proj.weight', heads * headWidth, hidden),
    ...(config.keyValues === 'shared'
      ? keyValues
      : branchNames.flatMap((branch) => within(branch, keyValues))),
    ...within(
      'compress_k',
      compressionParameters(compression, keyValueHeads, headWidth),
    ),
    ...within(
      'compress_v',
      compressionParameters(compression, keyValueHeads, valueWidth),
    ),
    matrix('g_proj.weight', heads * branchNames.length, hidden),
    ...(config.gateBias
      ? [constant('g_proj.bias', [heads, branchNames.length], 0)]
      : []),
    matrix('o_proj.weight', hidden, heads * valueWidth),
  ];
}

/**
 * Native Sparse Attention: compressed, selected and window branches with one
 * gate each. `h [N, hidden]` to `[N, hidden]`. Source: arXiv 2502.11089.
 */
export function nsa(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  config: NsaConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past, rotate } = context;
  const { headWidth, window, selection, compression } = config;
  const { length, stride } = compression;
  const { sharing, blockSize } = selection;
  const groups = config.keyValueHeads;
  const scale = 1 / Math.sqrt(headWidth);

  const product = linears(context, h, weights, [
    'q_proj.weight',
    'g_proj.weight',
    ...keyValueNames(config),
  ]);
  const unrotated = splitHeads(product('q_proj.weight'), headWidth);
  const q = rotate(unrotated);
  const visible = branchRows(context, product, config);
  const blocks = compressKeyValues(
    context,
    visible.compressed,
    weights,
    config,
  );
  const sequences = past.sequences(visible.selected, blocks, sharing);

  const ranked = compression.rope === 'none' ? unrotated : q;
  const compressed = scope.run(
    compressedAttention,
    { q: ranked, ...blocks.rows },
    { sequences, scale, length, stride },
  );
  const { indices } = scope.run(
    selectBlocks,
    {
      q: ranked,
      k: blocks.rows.k,
      lse: compressed.lse,
      previous: past.previousLeaders(),
    },
    { sequences, scale, length, stride, groups, ...selection },
  );
  past.rememberLeaders(indices, sequences, sharing);
  const selected = scope.run(
    selectedAttention,
    { q, ...visible.selected.rows, indices },
    { sequences, scale, blockSize, sharing },
  );
  const windowed = scope.run(
    attention,
    { q, ...visible.window.rows },
    { sequences: past.sequences(visible.window), scale, window },
  );

  const o = scope.run(
    gatedSum,
    {
      gates: splitHeads(product('g_proj.weight'), branchNames.length),
      bias: config.gateBias ? weights('g_proj.bias') : undefined,
      compressed: compressed.o,
      selected: selected.o,
      window: windowed.o,
    },
    {},
  ).y;
  return linear(context, joinHeads(o), weights('o_proj.weight'), plus);
}

/** Weights of the rows that are cached. */
function keyValueNames({ keyValues }: NsaConfig): string[] {
  const names = ['k_proj.weight', 'v_proj.weight'];
  return keyValues === 'shared'
    ? names
    : branchNames.flatMap((branch) => names.map((name) => `${branch}.${name}`));
}

/** K/V of each branch: the same rows for all, or rows of its own. */
function branchRows(
  { past, rotate }: LayerContext,
  product: Weights,
  { keyValues, headWidth, valueWidth, window, compression }: NsaConfig,
): Record<Branch, Visible<KeyValues>> {
  const rows = (of: Weights) => ({
    k: rotate(splitHeads(of('k_proj.weight'), headWidth)),
    v: splitHeads(of('v_proj.weight'), valueWidth),
  });
  if (keyValues === 'shared') {
    const all = past.extend('kv', rows(product));
    return { compressed: all, selected: all, window: all };
  }
  const branch = (name: Branch, last?: number) =>
    past.extend(name, rows(partOf(product, name)), last);
  return {
    // Rows wait here only until their last block is whole.
    compressed: branch('compressed', compression.length),
    selected: branch('selected'),
    window: branch('window', window),
  };
}

function compressKeyValues(
  context: LayerContext,
  visible: Visible<KeyValues>,
  weights: Weights,
  { compression, selection }: NsaConfig,
): Blocks<KeyValues> {
  const { length, stride } = compression;
  return context.past.compress(
    'blocks',
    visible,
    { length, stride, sharing: selection.sharing },
    ({ k, v }, ...where) => ({
      k: compressRotary(
        context,
        k,
        partOf(weights, 'compress_k'),
        compression,
        ...where,
      ),
      v: compressRows(
        context,
        v,
        partOf(weights, 'compress_v'),
        compression,
        where[0],
      ),
    }),
  );
}
