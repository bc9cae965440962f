import { blockCount, type Sequences, type Tensor } from '@asa/core';
import { type Grid, i32, i64 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  typed,
} from './context';

const THREADS = 256;

interface Attributes {
  readonly sequences: Sequences;
  readonly length: number;
  readonly stride: number;
}

export const compressKernels = (
  context: KernelContext,
): Kernels<
  'compress' | 'compressBackward' | 'unfoldBlocks' | 'unfoldBlocksBackward'
> => ({
  compress({ x, logits }, { y }, attributes) {
    const { sequences } = attributes;
    const weights = slotWeights(context, logits);
    context.clear(y);
    const row = extent(x, 1) * extent(x, 2);
    context.run({
      file: 'compress',
      entry: 'compress',
      defines: typed(x),
      threads: [THREADS],
      grid: bySequence(
        blockCount(sequences.keyRoom, attributes) * row,
        sequences,
      ),
      arguments: [...blocks(x, attributes), x, weights, y],
    });
    weights?.free();
  },

  compressBackward({ x, logits, dY }, { dX, dLogits }, attributes) {
    const { sequences } = attributes;
    const weights = slotWeights(context, logits);
    context.clear(dX);
    const row = extent(x, 1) * extent(x, 2);
    context.run({
      file: 'compress',
      entry: 'compressBackward',
      defines: typed(x),
      threads: [THREADS],
      grid: bySequence(sequences.keyRoom * row, sequences),
      arguments: [...blocks(x, attributes), dY, weights, dX],
    });
    if (weights && dLogits) {
      logitsGradient(context, { x, dY, weights, dLogits }, attributes);
    }
    weights?.free();
  },

  unfoldBlocks({ x, bias }, { y }, attributes) {
    const { sequences } = attributes;
    const row = extent(y, 1) * extent(y, 2);
    context.clear(y);
    context.run({
      file: 'compress',
      entry: 'unfoldBlocks',
      defines: typed(x),
      threads: [THREADS],
      grid: bySequence(
        blockCount(sequences.keyRoom, attributes) * row,
        sequences,
      ),
      arguments: [...blocks(x, attributes), x, bias, y],
    });
  },

  unfoldBlocksBackward({ dY }, { dX, dBias }, attributes) {
    const { sequences } = attributes;
    const row = extent(dX, 1) * extent(dX, 2);
    context.clear(dX);
    context.run({
      file: 'compress',
      entry: 'unfoldBlocksBackward',
      defines: typed(dY),
      threads: [THREADS],
      grid: bySequence(sequences.keyRoom * row, sequences),
      arguments: [...blocks(dX, attributes), dY, dX],
    });
    if (!dBias) return;
    context.run({
      file: 'compress',
      entry: 'unfoldBias',
      defines: typed(dY),
      ...elementwise(dBias.size),
      arguments: [
        ...blocks(dX, attributes),
        dY,
        dBias,
        i64(dBias.size),
        i32(sequences.count),
      ],
    });
  },
});

/** The kernels' structure of that name; x is `[N, G, D]`. */
function blocks(x: Tensor, { sequences, length, stride }: Attributes) {
  return [
    sequences.on(x.backend),
    i32(length),
    i32(stride),
    i32(extent(x, 1)),
    i32(extent(x, 2)),
  ] as const;
}

/** One thread an element of the longest sequence, z over sequences. */
function bySequence(elements: number, sequences: Sequences): Grid {
  return [Math.ceil(elements / THREADS), 1, sequences.count];
}

/** w[g] = softmax(logits[g]), f32 `[G, l]`; none without logits */
function slotWeights(
  context: KernelContext,
  logits: Tensor | undefined,
): Tensor | undefined {
  if (!logits) return undefined;
  const weights = context.scratch(logits.size, 'f32');
  context.run({
    file: 'compress',
    entry: 'slotWeights',
    defines: typed(logits),
    ...elementwise(logits.size),
    arguments: [logits, weights, i32(extent(logits, 1)), i32(logits.size)],
  });
  return weights;
}

function logitsGradient(
  context: KernelContext,
  {
    x,
    dY,
    weights,
    dLogits,
  }: Readonly<Record<'x' | 'dY' | 'weights' | 'dLogits', Tensor>>,
  attributes: Attributes,
): void {
  const { sequences, length } = attributes;
  const dW = context.scratch(weights.size, 'f32');
  context.run({
    file: 'compress',
    entry: 'compressSlots',
    defines: typed(x),
    grid: [length, extent(x, 1)],
    threads: [THREADS],
    arguments: [...blocks(x, attributes), x, dY, dW, i32(sequences.count)],
  });
  context.run({
    file: 'compress',
    entry: 'compressLogits',
    defines: typed(x),
    ...elementwise(weights.size),
    arguments: [weights, dW, dLogits, i32(length), i32(weights.size)],
  });
  dW.free();
}
