/**
 * Gradients of selected attention by a walk over those that chose a block; see
 * the kernel.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32, type Launch } from '../launch';
import {
  call,
  listLength,
  plusDefine,
  queryArguments,
  shapeOf,
} from './attention-tile';
import {
  elementwise,
  extent,
  type KernelContext,
  scratchBytes,
} from './context';
import {
  type FlashTile,
  fitTogether,
  isBackwardShape,
  isLatent,
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
import { hopperBlocksTile } from './hopper';

/** Most lists of an item. */
const ITEM = 128;
/**
 * Of the L2 cache, for the rows of q and dO of one unit's leaders: items of one
 * unit are at work at a time, and read each row as often as its list is long.
 */
const HOT_SHARE = 1 / 3;
/**
 * With fewer leaders at once, sums over keys are read and written too often. On
 * Hopper, measured, that is more than the rows that the L2 cache then misses.
 */
const LEAST_LEADERS = { any: 1024, hopper: 4096 };

/**
 * The cut of a walk over those that chose a block: blocks of 64 keys, lists of
 * 16, 32 or 64 rows, and sums that fit registers.
 */
export function blocksTile(
  inputs: AttentionOperands,
  { keys, unitHeads, sharing, indices }: SelectedView,
  facts: DeviceFacts,
): FlashTile | undefined {
  const shape = shapeOf(inputs);
  const { keyHeads, heads, valueWidth } = shape;
  const keyWidth = shape.width + shape.ropeWidth;
  const listRows = sharing * unitHeads;
  const isWhole =
    keyWidth % 32 === 0 && valueWidth % 32 === 0 && keyWidth <= 128;
  if (!isBackwardShape(shape) || !isWhole) return undefined;
  // Each key head has its list: one item at a time adds to a block's sums.
  const isOwn =
    unitHeads === heads / keyHeads && extent(indices, 1) === keyHeads;
  if (keys !== 64 || ![16, 32, 64].includes(listRows) || !isOwn) {
    return undefined;
  }
  const [rows, warps, stages] = [64, 4, 2];
  const needed =
    2 * keys * (keyWidth + (isLatent(inputs) ? 0 : valueWidth)) +
    2 * rows * (stages * (keyWidth + valueWidth) + 2 * keys) +
    12 * rows +
    2 * ITEM;
  const blocks = [2, 1].find((n) => fitTogether(n, needed, facts));
  if (blocks === undefined) return undefined;
  return { rows, warps, keys, stages, blocks, sharedBytes: needed };
}

export function backwardByBlocks(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: SelectedView,
  tile: FlashTile,
): void {
  const step = leadersAtOnce(inputs, view, context.facts);
  walkLeaders(context, inputs, outputs, view, step, (given, sums, leaders) =>
    walkBlocks(context, given, outputs, sums, view, tile, leaders),
  );
}

/**
 * Leaders of each sequence, as many as scratch memory holds the parts of and the
 * L2 cache the rows of, or a few more, and all times about as many.
 */
function leadersAtOnce(
  inputs: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): number {
  const { width, ropeWidth, valueWidth } = shapeOf(inputs);
  const rows = view.sharing * view.unitHeads;
  const rowBytes = 2 * rows * (width + ropeWidth + valueWidth);
  const bytes = 2 * view.sequences.count * partElements(inputs, view);
  const least = hopperTileOf(inputs, facts)
    ? LEAST_LEADERS.hopper
    : LEAST_LEADERS.any;
  const most = Math.min(
    Math.max(1, Math.floor(scratchBytes(facts) / bytes)),
    Math.max(least, (facts.l2Bytes * HOT_SHARE) / rowBytes),
  );
  const all = leadersOf(view);
  const walks = Math.max(1, Math.ceil(all / most));
  return Math.ceil(all / walks);
}

/** Of a leader's parts: for each block of its lists a gradient of its rows. */
function partElements(
  inputs: AttentionOperands,
  { sharing, ...view }: SelectedView,
): number {
  const { heads, width, ropeWidth } = shapeOf(inputs);
  return listLength(view) * sharing * heads * (width + ropeWidth);
}

const hopperTileOf = (inputs: AttentionOperands, facts: DeviceFacts) =>
  hopperBlocksTile(shapeOf(inputs), isLatent(inputs), facts);

/** The kernel of the walk itself; those before and behind it are of any card. */
function walkOf(
  context: KernelContext,
  inputs: WalkInputs,
  view: SelectedView,
  tile: FlashTile,
): (launch: Pick<Launch, 'grid' | 'arguments'>) => void {
  const { facts } = context;
  const hopper = hopperTileOf(inputs, facts);
  const [file, entry, cut] = hopper
    ? (['hopper-backward-blocks', 'hopperBackwardBlocks', hopper] as const)
    : (['flash-backward-blocks', 'flashBackwardBlocks', tile] as const);
  const run = launcher(context, file, inputs, view, cut, { ITEM });
  const { sharedBytes } = cut;
  return (launch) => run({ entry, sharedBytes, ...launch });
}

/** What some leaders' queries add to their keys, and their own gradients. */
function walkBlocks(
  context: KernelContext,
  inputs: WalkInputs,
  outputs: AttentionGradients,
  sums: KeySums,
  view: SelectedView,
  tile: FlashTile,
  leaders: Leaders,
): void {
  const { sequences, unitHeads, sharing } = view;
  const { lists, blocks, rows } = inverseOf(view);
  const { first, count } = leaders;
  const { width, ropeWidth, valueWidth } = shapeOf(inputs);
  const keyWidth = width + ropeWidth;
  const run = launcher(context, 'flash-backward-blocks', inputs, view, tile, {
    ITEM,
    ...plusDefine(inputs),
  });
  const walk = walkOf(context, inputs, view, tile);
  const given = call(inputs, view);
  const perWarp = elementwise(32 * rows);

  const places = listPlaces(context, view, leaders);
  const chosen = sequences.count * lists * count * listLength(view);
  const mostFurther = Math.floor(chosen / ITEM);
  const mostItems = Math.min(rows, chosen) + mostFurther;
  const inverse = context.scratch(4 * rows, 'i32');
  const items = context.scratch(4 * mostItems, 'i32');
  const itemCount = context.scratch(1, 'i32');
  const entries = context.scratch(chosen, 'i32');
  run({
    entry: 'countPlaces',
    ...perWarp,
    arguments: [places, inverse, i32(rows), i32(count)],
  });
  run({
    entry: 'shareOut',
    grid: [1],
    threads: [1024],
    arguments: [inverse, items, itemCount, i32(rows)],
  });
  run({
    entry: 'listEntries',
    ...perWarp,
    arguments: [places, inverse, entries, i32(rows), i32(count)],
  });
  places.free();

  const elements = sequences.count * count * partElements(inputs, view);
  const parts = context.scratch(elements, inputs.q.dtype);
  const further = context.scratch(
    mostFurther * tile.keys * (keyWidth + valueWidth),
    'f32',
  );
  const gradients = [sums.k, sums.v, sums.kRope];
  walk({
    grid: [mostItems],
    arguments: [
      ...given,
      inputs.dO,
      inputs.statistics,
      parts,
      ...gradients,
      further,
      items,
      itemCount,
      entries,
      ...[first, count, blocks].map(i32),
    ],
  });
  run({
    entry: 'sumItems',
    grid: [rows, (keyWidth + valueWidth) / 32],
    arguments: [...given, inverse, further, ...gradients, i32(blocks)],
  });
  run({
    entry: 'sumBlockParts',
    grid: [count * ((sharing * unitHeads) / 16), lists, sequences.count],
    threads: [2 * keyWidth],
    arguments: [
      ...given,
      parts,
      ...queryArguments(inputs, outputs),
      ...[first, count, blocks].map(i32),
    ],
  });
  for (const x of [inverse, items, itemCount, entries, parts, further]) {
    x.free();
  }
}
