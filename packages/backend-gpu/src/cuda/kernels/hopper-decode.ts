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
  coversQueries,
  shapeOf,
  type View,
} from './attention-tile';
import { extent, fillBits, type KernelContext } from './context';
import { columnsOf, flashLaunch, isFlashShape, isLatent } from './flash';
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
/** Blocks of threads of a cluster at most, on any card of this kind. */
const MOST_CLUSTERED = 8;
/** Rounds of keys from which several clusters and a second kernel are faster. */
const LONG_ROUNDS = 4;
/** Units that may read a long past each for itself. */
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
  const { cluster, parts } = sharesOf(view, units, facts);
  const results = parts > 1 ? partsOf(context, outputs, parts) : outputs;
  if (!coversQueries(view.sequences, outputs.o)) {
    // Rows of no sequence: output 0, LSE -inf. Joined of such parts, too.
    if (parts === 1) context.clear(outputs.o);
    fillBits(context, results.lse, 0xff800000 | 0);
  }
  const { defines, ...launch } = launchOf(shape, latent, view);
  const lists = view.indices ? extent(view.indices, 1) : 1;
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
      ONCE: keyBytes(shape, latent, view) > facts.l2Bytes / 2 ? 1 : 0,
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
  { capability }: DeviceFacts,
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
  const readers = [1, 2, 4, 8].find(
    (n) => unitHeads % n === 0 && (unitHeads / n) * queries <= ROWS,
  );
  const isMany = readers === undefined || readers > MOST_READERS;
  if (readers === undefined || (isMany && walk > LONG_WALK)) return undefined;
  return unitHeads / readers;
}

/**
 * Blocks of threads of a cluster, and clusters, that share out a unit's walk. It
 * depends on the room for keys, not on their number: a recording serves all
 * lengths that have room.
 */
function sharesOf(
  { walk, sequences }: View,
  units: number,
  { multiprocessors }: DeviceFacts,
): { cluster: number; parts: number } {
  // So many fill the card once.
  const few = (BLOCKS * multiprocessors) / (units * sequences.count);
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
  { walk, sequences }: View,
): number {
  const columns = keyHeads * (width + (latent ? 0 : valueWidth)) + ropeWidth;
  return 2 * columns * walk * sequences.count;
}

function launchOf(
  shape: AttentionShape,
  latent: boolean,
  view: View,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> {
  const { width, ropeWidth, valueWidth } = shape;
  // A place has whole chunks of 64 columns, a ring room for sums in f32.
  const widths = [width, ropeWidth, latent ? 0 : valueWidth];
  const placeBytes = widths.reduce(
    (sum, columns) => sum + 2 * ROWS * 64 * Math.ceil(columns / 64),
    0,
  );
  const sumBytes = 4 * ROWS * (columnsOf(shape).values + 8);
  const stages = Math.max(PLACES, Math.ceil(sumBytes / placeBytes));
  return flashLaunch(shape, view, latent, {
    rows: ROWS,
    warps: WARPS,
    keys: KEYS,
    stages,
    blocks: BLOCKS,
    sharedBytes: WARPS * stages * placeBytes + TILE_BYTES,
  });
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
