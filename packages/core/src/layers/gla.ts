import type { GlaConfig } from '../model/config';
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
import { joinHeads, type LayerContext, linear, splitHeads } from './context';
import {
  latentParameters,
  latentReading,
  latentScale,
  latents,
} from './latent';
import {
  constant,
  matrix,
  type ParameterSpec,
  partOf,
  type Weights,
  within,
} from './parameters';

const branches = 2;

export function glaParameters(
  config: GlaConfig,
  hidden: number,
): ParameterSpec[] {
  const { heads, groups, latentWidth, ropeWidth, compression } = config;
  return [
    ...latentParameters(config, hidden, groups),
    ...within(
      'compress_latent',
      compressionParameters(compression, groups, latentWidth),
    ),
    ...(compression.rope === 'none'
      ? []
      : within(
          'compress_rope',
          compressionParameters(compression, 1, ropeWidth),
        )),
    matrix('gate_proj.weight', heads * branches, hidden),
    ...(config.gateBias
      ? [constant('gate_proj.bias', [heads, branches], 0)]
      : []),
  ];
}

/**
 * The global layer: group latent attention over compressed blocks of the whole
 * past, and over the tokens of the selected ones. `h [N, hidden]` to
 * `[N, hidden]`. Source: maths.md §3.
 */
export function gla(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  config: GlaConfig,
  plus?: Tensor,
): Tensor {
  const { scope, past } = context;
  const { groups, compression, selection } = config;
  const { length, stride } = compression;
  const { sharing, blockSize } = selection;
  const { qC, qR, rows, product } = latents(context, h, weights, config, [
    'gate_proj.weight',
  ]);
  const visible = past.extend('latent', rows);

  const blocks = past.compress(
    'compressed',
    visible,
    { length, stride, sharing },
    ({ c, kR }, ...where): { c: Tensor; kR?: Tensor } => ({
      c: compressRows(
        context,
        c,
        partOf(weights, 'compress_latent'),
        compression,
        where[0],
      ),
      ...(compression.rope !== 'none' && {
        kR: compressRotary(
          context,
          kR,
          partOf(weights, 'compress_rope'),
          compression,
          ...where,
        ),
      }),
    }),
  );
  const sequences = past.sequences(visible, blocks, sharing);

  const form = context.form === 'expanded' ? 'expanded' : 'absorbed';
  const { q, read, values } = latentReading(context, qC, weights, form);
  const scale = latentScale(config);
  const rotary = blocks.rows.kR && { qRope: qR, kRope: blocks.rows.kR };

  const { k, v } = read(blocks.rows.c);
  const compressed = scope.run(
    compressedAttention,
    { q, k, v, ...rotary },
    { sequences, scale, length, stride },
  );
  const { indices } = scope.run(
    selectBlocks,
    {
      q,
      k,
      ...rotary,
      lse: compressed.lse,
      previous: past.previousLeaders(),
    },
    { sequences, scale, length, stride, groups, ...selection },
  );
  past.rememberLeaders(indices, sequences, sharing);
  const selected = scope.run(
    selectedAttention,
    {
      q,
      ...read(visible.rows.c),
      qRope: qR,
      kRope: visible.rows.kR,
      indices,
    },
    { sequences, scale, blockSize, sharing },
  );

  // The gates act on sums of latents: one up-projection serves both branches.
  const o = scope.run(
    gatedSum,
    {
      gates: splitHeads(product('gate_proj.weight'), branches),
      bias: config.gateBias ? weights('gate_proj.bias') : undefined,
      compressed: compressed.o,
      selected: selected.o,
    },
    {},
  ).y;
  return linear(context, joinHeads(values(o)), weights('o_proj.weight'), plus);
}
