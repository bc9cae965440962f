/**
 * The forward pass of the three attentions. In decoding rows are few and keys
 * many: blocks of threads share out a walk then, and a second kernel joins
 * what they found.
 */
import type { AttentionOperands, AttentionResults } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Boxes, boxes, i32, type Launch } from '../launch';
import {
  call,
  compiled,
  listLength,
  requiredTile,
  rowGrid,
  shapeOf,
  startRows,
  TABLE_BYTES,
  type View,
} from './attention-tile';
import { extent, type KernelContext } from './context';
import { flashForwardTile, flashLaunch, isLatent } from './flash';
import {
  type HopperCut,
  hopperForwardCut,
  hopperGrid,
  hopperLaunch,
} from './hopper';
import { decodeOnHopper } from './hopper-decode';
import { joinParts, LONG_WALK, MOST_PARTS, partsOf } from './row-parts';

/** The kernel for a shape, and what its launch is sized by. */
interface Pass {
  readonly launch: Pick<
    Launch,
    'file' | 'entry' | 'defines' | 'threads' | 'sharedBytes'
  >;
  readonly rows: number;
  /** Keys at a time. */
  readonly keys: number;
  /** Blocks of threads that a multiprocessor holds. */
  readonly blocks: number;
  /** Blocks for the columns of a row's results. */
  readonly parts?: number;
}

export function attend(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): void {
  if (decodeOnHopper(context, operands, outputs, view)) return;
  if (attendOnHopper(context, operands, outputs, view)) return;
  attendByWalks(context, operands, outputs, view);
}

/** Tiles of rows, whose walks blocks of threads may share out, on any card. */
export function attendByWalks(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): void {
  const { launch, parts, ...pass } = passOf(context, operands, view);
  const grid = rowGrid(shapeOf(operands), view, pass.rows, parts);
  const [x, y = 1, z = 1] = grid;
  const splits = splitsOf(view, x * y * z, pass, context.facts);
  const isSplit = splits > 1;
  const results = isSplit ? partsOf(context, outputs, splits) : outputs;
  startRows(context, view.sequences, outputs, results);
  context.run({
    ...launch,
    defines: { ...launch.defines, SPLIT: isSplit ? 1 : 0 },
    grid: [x * splits, y, z],
    arguments: [
      ...call(operands, view),
      results.o,
      results.lse,
      i32(splits),
      ...(parts === undefined ? [] : [i32(parts)]),
    ],
  });
  if (!isSplit) return;
  joinParts(context, results, outputs);
}

/** Dense views of many rows on Hopper; false where that is not what it is. */
function attendOnHopper(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): boolean {
  const { facts } = context;
  const shape = shapeOf(operands);
  const cut = hopperForwardCut(shape, isLatent(operands), view, facts);
  if (!cut) return false;
  const { count } = hopperGrid(shape, view, cut.rows);
  if (splitsOf(view, count, { ...cut, blocks: 1 }, facts) > 1) return false;
  attendInTiles(context, operands, outputs, view, cut);
  return true;
}

/** Tiles of rows of a unit, each over all that its rows see, on Hopper. */
export function attendInTiles(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
  cut: HopperCut,
): void {
  const shape = shapeOf(operands);
  const grid = hopperGrid(shape, view, cut.rows);
  startRows(context, view.sequences, outputs);
  const maps = boxesOf(operands, view, cut);
  const launch = hopperLaunch(shape, view, isLatent(operands), cut);
  context.run({
    file: 'hopper-forward',
    entry: 'hopperForward',
    ...launch,
    defines: { ...launch.defines, BOXED: maps.length > 0 ? 1 : 0 },
    grid: [Math.min(grid.count, context.facts.multiprocessors)],
    arguments: [
      ...maps,
      ...call(operands, view),
      outputs.o,
      outputs.lse,
      ...grid.arguments,
    ],
  });
}

/**
 * `Maps` of hopper-forward.cu, where the card copies whole tiles by itself, as
 * boxes of 64 columns: rotary columns begin with a chunk, a tile has whole
 * queries, and there are keys.
 */
function boxesOf(
  operands: AttentionOperands,
  { unitHeads }: View,
  { rows, keys }: HopperCut,
): readonly Boxes[] {
  const { q, k, v, qRope, kRope } = operands;
  const isChunked = !kRope || extent(k, 2) % 64 === 0;
  if (!isChunked || rows % unitHeads > 0 || k.size === 0) return [];
  const queries = rows / unitHeads;
  return [
    boxes(q, queries, unitHeads),
    boxes(k, keys),
    boxes(v, keys),
    ...(qRope ? [boxes(qRope, queries, unitHeads)] : []),
    ...(kRope ? [boxes(kRope, keys)] : []),
  ];
}

function passOf(
  context: KernelContext,
  operands: AttentionOperands,
  view: View,
): Pass {
  const shape = shapeOf(operands);
  const { sharedBytes } = context.facts;
  const latent = isLatent(operands);
  const flash = flashForwardTile(
    shape,
    latent,
    view.rows,
    listLength(view),
    sharedBytes,
  );
  if (flash) {
    return {
      ...flash,
      launch: {
        file: 'flash-forward',
        entry: 'flashForward',
        ...flashLaunch(shape, view, latent, flash),
      },
    };
  }
  const tile = requiredTile('forward', shape, view, context);
  const { warps, others, parts } = tile;
  const held = Math.floor(sharedBytes / (tile.sharedBytes + TABLE_BYTES));
  return {
    launch: {
      file: 'attention-forward',
      entry: 'attentionForward',
      ...compiled(shape, view, tile),
    },
    rows: 16 * warps,
    keys: others,
    // Registers are enough for eight warps.
    blocks: Math.max(1, Math.min(8 / warps, held)),
    parts,
  };
}

/**
 * Blocks of threads that share out a walk, which each read the true lengths.
 * It depends on the room for keys, not on their number: a recording serves all
 * lengths that have room.
 */
function splitsOf(
  { walk }: View,
  tiles: number,
  { keys, blocks }: Pick<Pass, 'keys' | 'blocks'>,
  { multiprocessors }: DeviceFacts,
): number {
  if (tiles === 0) return 1;
  // So many fill the card once.
  const few = (blocks * multiprocessors) / tiles;
  const wanted = Math.max(few, walk / LONG_WALK);
  const most = Math.min(MOST_PARTS, 4 * few, walk / (2 * keys));
  return Math.max(1, Math.floor(Math.min(wanted, most)));
}
