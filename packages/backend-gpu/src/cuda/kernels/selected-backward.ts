/**
 * The gradients of selected attention in one walk over each list, where that
 * is less work than a pass over queries and one over keys.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32 } from '../launch';
import {
  type AttentionShape,
  attendBackward,
  call,
  coversQueries,
  listLength,
  rowStatistics,
  shapeOf,
  sumHeads,
  type View,
} from './attention-tile';
import { elementwise, extent, type KernelContext } from './context';
import {
  type FlashTile,
  flashLaunch,
  isBackwardShape,
  isLatent,
  TABLE_BYTES,
} from './flash';

/** Scratch memory for the parts of gradients, at most so much of the device's. */
const partBytes = ({ totalBytes }: DeviceFacts) =>
  Math.min(2 ** 30, totalBytes / 64);

export function selectedBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
): void {
  const { sharedBytes } = context.facts;
  const latent = isLatent(inputs);
  const tile = listsTile(shapeOf(inputs), latent, view, sharedBytes);
  if (tile) byLists(context, inputs, outputs, view, tile);
  else attendBackward(context, inputs, outputs, view);
}

/**
 * The cut of a walk over lists; none where its rows do not fill a tile, or
 * bring fewer bytes to each block than the block's gradients have.
 */
export function listsTile(
  shape: AttentionShape,
  latent: boolean,
  view: View,
  sharedBytes: number,
): FlashTile | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const keyWidth = width + ropeWidth;
  const isWhole = keyWidth % 32 === 0 && valueWidth % 32 === 0;
  if (!isBackwardShape(shape) || !isWhole) return undefined;
  if (view.rows <= 32 || view.keys > 32 || view.keys % 16 !== 0) {
    return undefined;
  }
  const [rows, warps, keys, stages] = [64, 4, 64, 2];
  const needed =
    2 * stages * keys * (keyWidth + (latent ? 0 : valueWidth)) +
    2 * rows * (keyWidth + valueWidth + 2 * keys) +
    4 * listLength(view);
  const blocks = [2, 1].find(
    (count) => count * (needed + TABLE_BYTES) <= sharedBytes,
  );
  return blocks === undefined
    ? undefined
    : { rows, warps, keys, stages, blocks, sharedBytes: needed };
}

/** Sums of gradients in f32, to which the parts of some leaders are added. */
interface Sums {
  readonly k: Tensor;
  readonly v: Tensor;
  /** The rotary key is shared: each key head gives its part. */
  readonly kRope: Tensor | undefined;
}

function byLists(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
  tile: FlashTile,
): void {
  const { dQ, dK, dV, dQRope, dKRope } = outputs;
  const { keyHeads } = shapeOf(inputs);
  if (!coversQueries(view.sequences, dQ)) {
    context.clear(dQ);
    if (dQRope) context.clear(dQRope);
  }
  const statistics = rowStatistics(context, inputs);
  const sums = {
    k: zeros(context, dK.size, 'f32'),
    v: zeros(context, dV.size, 'f32'),
    kRope: dKRope && zeros(context, dKRope.size * keyHeads, 'f32'),
  };
  const { sequences, sharing = 1 } = view;
  const leaders = Math.ceil(sequences.maxQueries / sharing);
  const step = leadersAtOnce(leaders, inputs, view, tile, context.facts);
  for (let first = 0; first < leaders; first += step) {
    const count = Math.min(step, leaders - first);
    walkLists(context, { ...inputs, statistics }, outputs, sums, view, tile, {
      first,
      count,
    });
  }
  statistics.free();
  sumHeads(context, sums.k, 1, dK);
  sumHeads(context, sums.v, 1, dV);
  if (sums.kRope && dKRope) sumHeads(context, sums.kRope, keyHeads, dKRope);
  for (const sum of [sums.k, sums.v, sums.kRope]) sum?.free();
}

/** Keys of a list and tiles of rows of a leader; columns of a key's gradient. */
function partsOf(
  inputs: AttentionOperands,
  view: View,
  { rows }: FlashTile,
): { keys: number; tiles: number; units: number; columns: number } {
  const { heads, width, ropeWidth, valueWidth } = shapeOf(inputs);
  const { unitHeads, sharing = 1, blockSize = 1 } = view;
  return {
    keys: listLength(view) * blockSize,
    tiles: Math.ceil((sharing * unitHeads) / rows),
    units: heads / unitHeads,
    columns: width + ropeWidth + valueWidth,
  };
}

/**
 * Leaders of each sequence whose parts scratch memory holds, so many that the
 * last blocks of threads leave no multiprocessor idle.
 */
function leadersAtOnce(
  leaders: number,
  inputs: AttentionOperands,
  view: View,
  tile: FlashTile,
  facts: DeviceFacts,
): number {
  const { keys, tiles, units, columns } = partsOf(inputs, view, tile);
  const perLeader = view.sequences.count * units * tiles;
  const most = Math.floor(partBytes(facts) / (2 * perLeader * keys * columns));
  if (most >= leaders) return leaders;
  const atOnce = tile.blocks * facts.multiprocessors;
  const rounds = Math.floor((most * perLeader) / atOnce);
  return Math.max(1, Math.floor((rounds * atOnce) / perLeader) || most);
}

/** All gradients of some leaders' queries, and what they add to their keys. */
function walkLists(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults & { statistics: Tensor },
  { dQ, dQRope }: AttentionGradients,
  sums: Sums,
  view: View,
  tile: FlashTile,
  { first, count }: { first: number; count: number },
): void {
  const shape = shapeOf(inputs);
  const { sequences, unitHeads, sharing = 1, blockSize = 1 } = view;
  const { keys, tiles, units, columns } = partsOf(inputs, view, tile);
  const lists = view.indices ? extent(view.indices, 1) : 1;
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  const elements = sequences.count * units * count * tiles * keys * columns;
  const parts = context.scratch(elements, inputs.q.dtype);
  const inverse = sequences.count * lists * blocks * count;
  const places = zeros(context, Math.ceil(inverse / 2), 'i32');

  const given = call(inputs, view);
  const { defines, ...cut } = flashLaunch(shape, view, isLatent(inputs), tile);
  const compiled = {
    file: 'flash-backward-lists',
    defines: { ...defines, UNIT: unitHeads, SHARING: sharing },
  } as const;
  const { grid, threads } = elementwise(count * lists * listLength(view));
  context.run({
    ...compiled,
    entry: 'listPlaces',
    grid: [grid[0], 1, sequences.count],
    threads,
    arguments: [...given, places, ...[first, count, blocks].map(i32)],
  });
  context.run({
    ...compiled,
    ...cut,
    entry: 'flashBackwardLists',
    grid: [count * tiles, units, sequences.count],
    arguments: [
      ...given,
      inputs.dO,
      inputs.statistics,
      dQ,
      dQRope,
      parts,
      ...[first, count].map(i32),
    ],
  });
  context.run({
    ...compiled,
    entry: 'sumListParts',
    grid: [
      2 * Math.ceil(sequences.maxKeys / 16),
      shape.keyHeads,
      sequences.count,
    ],
    threads: [columns],
    arguments: [
      ...given,
      parts,
      places,
      sums.k,
      sums.v,
      sums.kRope,
      ...[first, count, blocks].map(i32),
    ],
  });
  parts.free();
  places.free();
}

function zeros(
  context: KernelContext,
  elements: number,
  dtype: 'f32' | 'i32',
): Tensor {
  const x = context.scratch(elements, dtype);
  context.clear(x);
  return x;
}
