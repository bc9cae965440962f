import type { CompressionConfig } from '../model/config';
import { type BlockAttributes, compress, unfoldBlocks } from '../ops/compress';
import { headMatmul } from '../ops/head-matmul';
import { swiglu } from '../ops/swiglu';
import type { Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import type { LayerContext } from './context';
import {
  constant,
  matrix,
  type ParameterSpec,
  type Weights,
} from './parameters';

/** Parameters of `phi` over rows `[G, width]`. */
export function compressionParameters(
  { kind, length }: CompressionConfig,
  groups: number,
  width: number,
): ParameterSpec[] {
  const unfolded = length * width;
  const bias = constant('bias', [groups, length, width], 0);
  switch (kind) {
    case 'mean':
      return [];
    case 'weighted':
      return [constant('logits', [groups, length], 0)];
    case 'linear':
      return [bias, matrix('weight', groups, width, unfolded)];
    case 'mlp':
      return [
        bias,
        matrix('hidden.weight', groups, width, unfolded),
        matrix('weight', groups, width, width),
      ];
  }
}

/**
 * `phi`: rows `[b d, b d + l)` of each sequence to block row b.
 * `x [Nk, G, D]` to `[NB, G, D]`. Source: maths.md §3, compression.
 */
export function compressRows(
  { scope }: LayerContext,
  x: Tensor,
  weights: Weights,
  { kind, length, stride }: CompressionConfig,
  sequences: Sequences,
): Tensor {
  const blocks: BlockAttributes = { sequences, length, stride };
  if (kind === 'mean') return scope.run(compress, { x }, blocks).y;
  if (kind === 'weighted') {
    return scope.run(compress, { x, logits: weights('logits') }, blocks).y;
  }
  const unfolded = scope.run(
    unfoldBlocks,
    { x, bias: weights('bias') },
    blocks,
  );
  const apply = (input: Tensor, name: string) =>
    scope.run(headMatmul, { x: input, w: weights(name) }, {}).y;
  if (kind === 'linear') return apply(unfolded.y, 'weight');
  const hidden = apply(unfolded.y, 'hidden.weight');
  return apply(scope.run(swiglu, { gate: hidden }, {}).y, 'weight');
}

/**
 * `phi` over rotary keys that are cached rotated: as they are, or turned back,
 * compressed, and turned to the position of the block's first token.
 */
export function compressRotary(
  context: LayerContext,
  x: Tensor,
  weights: Weights,
  config: CompressionConfig,
  sequences: Sequences,
  positions: Tensor,
  blockPositions: Tensor,
): Tensor {
  if (config.rope === 'rotated-mean') {
    return compressRows(context, x, weights, config, sequences);
  }
  const unrotated = context.rotate(x, positions, true);
  const blocks = compressRows(context, unrotated, weights, config, sequences);
  return config.rope === 'block-start'
    ? context.rotate(blocks, blockPositions)
    : blocks;
}
