/** Gradients of selected attention by a walk over each list; see the kernel. */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32 } from '../launch';
import {
  call,
  listLength,
  plusDefine,
  queryArguments,
  shapeOf,
} from './attention-tile';
import { extent, type KernelContext, scratchBytes } from './context';
import {
  type FlashTile,
  isBackwardShape,
  isLatent,
  TABLE_BYTES,
} from './flash';
import {
  inverseOf,
  type KeySums,
  type Leaders,
  launcher,
  leadersOf,
  listPlaces,
  type SelectedView,
  type WalkInputs,
  walkLeaders,
} from './gradient-parts';

/**
 * The cut of a walk over lists: where a list has more rows than a block has
 * keys, so that a part of the keys' gradients is smaller than the rows.
 */
export function listsTile(
  inputs: AttentionOperands,
  view: SelectedView,
  { sharedBytes }: DeviceFacts,
): FlashTile | undefined {
  const shape = shapeOf(inputs);
  const { width, ropeWidth, valueWidth } = shape;
  const keyWidth = width + ropeWidth;
  const isWhole = keyWidth % 32 === 0 && valueWidth % 32 === 0;
  if (!isBackwardShape(shape) || !isWhole) return undefined;
  if (view.rows <= 32 || view.keys > 32 || view.keys % 16 !== 0) {
    return undefined;
  }
  const [rows, warps, keys, stages] = [64, 4, 64, 2];
  const needed =
    2 * stages * keys * (keyWidth + (isLatent(inputs) ? 0 : valueWidth)) +
    2 * rows * (keyWidth + valueWidth + 2 * keys) +
    4 * listLength(view);
  const fits = (blocks: number) =>
    blocks * (needed + TABLE_BYTES) <= sharedBytes;
  if (!fits(1)) return undefined;
  const blocks = fits(2) ? 2 : 1;
  return { rows, warps, keys, stages, blocks, sharedBytes: needed };
}

export function backwardByLists(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: SelectedView,
  tile: FlashTile,
): void {
  const step = leadersAtOnce(inputs, view, tile, context.facts);
  walkLeaders(context, inputs, outputs, view, step, (given, sums, leaders) =>
    walkLists(context, given, outputs, sums, view, tile, leaders),
  );
}

/** Keys of a list, tiles of rows of a leader, columns of a key's gradient. */
function partsOf(
  inputs: AttentionOperands,
  { unitHeads, sharing, blockSize, indices }: SelectedView,
  { rows }: FlashTile,
): { keys: number; tiles: number; units: number; columns: number } {
  const { heads, width, ropeWidth, valueWidth } = shapeOf(inputs);
  return {
    keys: extent(indices, 2) * blockSize,
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
  inputs: AttentionOperands,
  view: SelectedView,
  tile: FlashTile,
  facts: DeviceFacts,
): number {
  const { keys, tiles, units, columns } = partsOf(inputs, view, tile);
  const perLeader = view.sequences.count * units * tiles;
  const most = Math.floor(
    scratchBytes(facts) / (2 * perLeader * keys * columns),
  );
  const atOnce = tile.blocks * facts.multiprocessors;
  const rounds = Math.floor((most * perLeader) / atOnce);
  const whole = Math.floor((rounds * atOnce) / perLeader);
  return most < leadersOf(view) && whole > 0 ? whole : most;
}

/** All gradients of some leaders' queries, and what they add to their keys. */
function walkLists(
  context: KernelContext,
  inputs: WalkInputs,
  outputs: AttentionGradients,
  sums: KeySums,
  view: SelectedView,
  tile: FlashTile,
  leaders: Leaders,
): void {
  const { sequences } = view;
  const { keys, tiles, units, columns } = partsOf(inputs, view, tile);
  const { blocks } = inverseOf(view);
  const { first, count } = leaders;
  const run = launcher(context, 'flash-backward-lists', inputs, view, tile, {
    ...plusDefine(inputs),
  });
  const elements = sequences.count * units * count * tiles * keys * columns;
  const parts = context.scratch(elements, inputs.q.dtype);
  const places = listPlaces(context, view, leaders);
  const given = call(inputs, view);
  run({
    entry: 'flashBackwardLists',
    grid: [count * tiles, units, sequences.count],
    sharedBytes: tile.sharedBytes,
    arguments: [
      ...given,
      inputs.dO,
      inputs.statistics,
      ...queryArguments(inputs, outputs),
      parts,
      ...[first, count].map(i32),
    ],
  });
  run({
    entry: 'sumListParts',
    grid: [
      2 * Math.ceil(sequences.maxKeys / 16),
      shapeOf(inputs).keyHeads,
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
