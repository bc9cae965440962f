/**
 * The forward pass of attention with few rows on Hopper: decoding. Blocks of
 * threads share out a unit's walk over keys; where those of one cluster are
 * enough for it, they add up their results themselves.
 */
import type { AttentionOperands, AttentionResults } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Boxes, boxes, type Launch } from '../launch';
import {
  type AttentionShape,
  call,
  shapeOf,
  startRows,
  type View,
} from './attention-tile';
import { extent, type KernelContext } from './context';
import {
  columnsOf,
  fitTogether,
  flashLaunch,
  isFlashShape,
  isLatent,
} from './flash';
import { TILE_BYTES } from './hopper';
import { joinParts, LONG_WALK, MOST_PARTS, partsOf } from './row-parts';

/** Rows of a unit at most, and keys that a warp has at a time. */
const ROWS = 16;
/** Of a block of threads, which a multiprocessor holds two of. */
const WARPS = 4;
const BLOCKS = 2;
const KEYS = ROWS * WARPS;
/**
 * Places of a warp's ring: more keep the card's memory no busier, and what else
 * is asked for waits behind them.
 */
const PLACES = 2;
/** Barriers and totals of a block of threads, which are not asked for. */
const OWN_BYTES = 1024;
/** Blocks of threads of a cluster at most, on any card of this kind. */
const MOST_CLUSTERED = 8;
/** Rounds of keys from which several clusters and a second kernel are faster. */
const LONG_ROUNDS = 4;
/**
 * Units of a key head's rows, which each read the keys, at most; of a long past,
 * and where the card is full without them, fewer.
 */
const READERS = [1, 2, 4];
const MOST_READERS = 2;

/** False where that is not what it is. */
export function decodeOnHopper(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): boolean {
  const { facts } = context;
  const shape = shapeOf(operands);
  const unitHeads = unitOf(shape, view, facts);
  if (unitHeads === undefined || operands.k.size * operands.q.size === 0) {
    return false;
  }
  const units = shape.heads / unitHeads;
  const latent = isLatent(operands);
  const { defines, blocks, ...launch } = launchOf(shape, latent, view, facts);
  // Blocks of threads that fill the card once, for each unit.
  const few = (blocks * facts.multiprocessors) / (units * view.sequences.count);
  const { cluster, parts } = sharesOf(view, few);
  const results = parts > 1 ? partsOf(context, outputs, parts) : outputs;
  startRows(context, view.sequences, outputs, results);
  const lists = view.indices ? extent(view.indices, 1) : units;
  context.run({
    file: 'hopper-decode',
    entry: 'hopperDecode',
    ...launch,
    defines: {
      ...defines,
      UNIT: unitHeads,
      KEY_UNITS: units / shape.keyHeads,
      LIST_UNITS: units / lists,
      LENGTH: view.length ?? 1,
      STRIDE: view.stride ?? 1,
      CLUSTER: cluster,
      SPLIT: parts > 1 ? 1 : 0,
      ONCE: keyBytes(shape, latent, view, lists) > facts.l2Bytes / 2 ? 1 : 0,
    },
    grid: [cluster * parts, units, view.sequences.count],
    arguments: [
      ...boxesOf(operands),
      ...call(operands, view),
      results.o,
      results.lse,
    ],
  });
  if (parts > 1) joinParts(context, results, outputs);
  return true;
}

/**
 * The heads of a unit whose rows are one tile, for the queries there are; none
 * where it is for other kernels.
 */
function unitOf(
  shape: AttentionShape,
  {
    kind,
    rows,
    unitHeads,
    walk,
    sequences,
    blockSize = ROWS,
    sharing = 1,
  }: View,
  { capability, multiprocessors }: DeviceFacts,
): number | undefined {
  if (capability !== 90 || !isFlashShape(shape) || kind === 'MASKED') {
    return undefined;
  }
  if (kind === 'SELECTED') {
    // A warp's keys are of one block, a unit's rows of one list.
    const leaders = Math.max(0, ...sequences.leaderCounts(sharing));
    if (blockSize % ROWS > 0 || leaders > 1) return undefined;
  }
  const queries = rows / unitHeads;
  const readers = READERS.find(
    (n) => unitHeads % n === 0 && (unitHeads / n) * queries <= ROWS,
  );
  if (readers === undefined) return undefined;
  const units = (shape.heads / unitHeads) * readers * sequences.count;
  const isBusy = walk > LONG_WALK || units > BLOCKS * multiprocessors;
  return isBusy && readers > MOST_READERS ? undefined : unitHeads / readers;
}

/**
 * Blocks of threads of a cluster, and clusters, that share out a unit's walk. It
 * depends on the room for keys, not on their number: a recording serves all
 * lengths that have room.
 */
function sharesOf(
  { walk }: View,
  few: number,
): { cluster: number; parts: number } {
  const rounds = walk / KEYS;
  const most = Math.min(MOST_CLUSTERED, few, Math.ceil(rounds));
  const cluster = 2 ** Math.floor(Math.log2(Math.max(1, most)));
  if (few >= 2 && rounds <= cluster * LONG_ROUNDS) return { cluster, parts: 1 };
  const wanted = Math.max(few, walk / LONG_WALK);
  const parts = Math.min(wanted, MOST_PARTS, 4 * few, rounds / 2);
  return { cluster: 1, parts: Math.max(1, Math.floor(parts)) };
}

/** What is read of keys and values, where all sequences fill their room. */
function keyBytes(
  { keyHeads, width, ropeWidth, valueWidth }: AttentionShape,
  latent: boolean,
  { kind, walk, sequences }: View,
  lists: number,
): number {
  const walks = kind === 'SELECTED' ? Math.max(keyHeads, lists) : keyHeads;
  const columns = walks * (width + (latent ? 0 : valueWidth)) + ropeWidth;
  return 2 * columns * walk * sequences.count;
}

function launchOf(
  shape: AttentionShape,
  latent: boolean,
  view: View,
  facts: DeviceFacts,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> & { blocks: number } {
  const { width, ropeWidth, valueWidth } = shape;
  // A place has whole chunks of 64 columns, a ring room for sums in f32.
  const widths = [width, ropeWidth, latent ? 0 : valueWidth];
  const placeBytes = widths.reduce(
    (sum, columns) => sum + 2 * ROWS * 64 * Math.ceil(columns / 64),
    0,
  );
  const sumBytes = 4 * ROWS * (columnsOf(shape).values + 8);
  const stages = Math.max(PLACES, Math.ceil(sumBytes / placeBytes));
  const sharedBytes = WARPS * stages * placeBytes + TILE_BYTES;
  const blocks = fitTogether(BLOCKS, sharedBytes + OWN_BYTES, facts)
    ? BLOCKS
    : 1;
  const cut = {
    rows: ROWS,
    warps: WARPS,
    keys: KEYS,
    stages,
    blocks,
    sharedBytes,
  };
  return { ...flashLaunch(shape, view, latent, cut), blocks };
}

/** `Maps` of hopper-decode.cu. */
function boxesOf(operands: AttentionOperands): readonly Boxes[] {
  const { k, v, kRope } = operands;
  return [
    boxes(k, ROWS),
    ...(isLatent(operands) ? [] : [boxes(v, ROWS)]),
    ...(kRope ? [boxes(kRope, ROWS)] : []),
  ];
}
