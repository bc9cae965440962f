/**
 * Which shapes attention takes the kernels of Hopper for (compute capability
 * 9.0: their instructions are of no other), and how those are cut.
 */
import type { Sequences } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32, type Launch } from '../launch';
import { type AttentionShape, total, type View } from './attention-tile';
import {
  columnsOf,
  type FlashTile,
  fitTogether,
  isBackwardShape,
  isFlashShape,
} from './flash';

export interface HopperCut {
  /** 64 for each warpgroup that computes. */
  readonly rows: number;
  /** Keys at a time, and tiles of them in shared memory. */
  readonly keys: number;
  readonly stages: number;
  readonly sharedBytes: number;
}

/** Which of them are in use; what is not takes the kernels of any card. */
const IN_USE = {
  forward: true,
  importance: true,
  /** All gradients in one walk; what it does not take, the two passes do. */
  backward: true,
  queries: true,
  keys: true,
  /** Parts of selected attention by blocks. */
  parts: true,
  /** Gradients of selected attention by a walk over those that chose a block. */
  blocks: true,
};

/** What widths are multiples of; 16 leaves odd ones out. The two passes need 16. */
const ODD = 8;

const ROWS = 128;
/** Four warps for 64 rows, and four that copy. */
const warpsOf = (rows: number) => rows / 16 + 4;
/** What tiles lose to start on multiples of so many bytes. */
export const TILE_BYTES = 1024;
/** That, and barriers. */
const SPARE_BYTES = TILE_BYTES + 256;
/** Items, statistics and barriers of one walk, which are not asked for. */
const WALK_BYTES = 1536;

const wholeChunks = (columns: number) => Math.ceil(columns / 64) * 64;

/** @param unit what widths must be multiples of: 16, or 8 and filled up with 0. */
function isHopperKey(
  shape: AttentionShape,
  { capability }: DeviceFacts,
  unit = 16,
): boolean {
  const { width, ropeWidth, valueWidth } = shape;
  const keyWidth = width + ropeWidth;
  const isWidth = keyWidth >= 64 && keyWidth <= 192;
  const isWhole = [width, ropeWidth, valueWidth].every((n) => n % unit === 0);
  return capability === 90 && isFlashShape(shape) && isWidth && isWhole;
}

const isHopperValue = (width: number) => width >= 64 && width <= 128;

/** Above this a walk of unlike lengths decides, not how it ends. */
const LONG_WALK = 2048;

/** Keys at a time, the best first. */
function keysOf({ kind, window = 0, unitHeads }: View): readonly number[] {
  // A byte of a mask.
  if (kind === 'MASKED') return [128];
  const span = window + Math.ceil(ROWS / unitHeads) - 1;
  if (kind !== 'ATTENTION' || span > LONG_WALK) return [128, 96];
  // What a window's walk takes of the tensor cores; a tile has its own costs.
  const cost = (keys: number) => Math.ceil(span / keys) * (keys + 16);
  return [176, 160, 144, 128, 112, 96].sort((a, b) => cost(a) - cost(b));
}

/** The cut of the forward pass; none where it is for other kernels. */
export function hopperForwardCut(
  shape: AttentionShape,
  isLatent: boolean,
  view: View,
  facts: DeviceFacts,
): HopperCut | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const fits =
    isHopperKey(shape, facts, ODD) && isHopperValue(columnsOf(shape).values);
  // One warpgroup would have nothing to do.
  if (
    !IN_USE.forward ||
    !fits ||
    view.kind === 'SELECTED' ||
    view.rows <= ROWS / 2
  ) {
    return undefined;
  }
  const keyColumns = wholeChunks(width + ropeWidth);
  const columns = keyColumns + (isLatent ? 0 : wholeChunks(valueWidth));
  // A latent tile is in use as keys and, a tile later, as values.
  const stages = isLatent ? 3 : 2;
  const bytesOf = (keys: number) =>
    2 * (ROWS * keyColumns + stages * keys * columns) + SPARE_BYTES;
  const keys = keysOf(view).find((n) => bytesOf(n) <= facts.sharedBytes);
  if (keys === undefined) return undefined;
  return { rows: ROWS, keys, stages, sharedBytes: bytesOf(keys) };
}

/** Warpgroups that compute parts, 2 or 3: each has some rounds of queries. */
const PART_GROUPS = 3;
/** Tiles of keys: of an item one, and two on their way, or all three. */
const PART_KEY_STAGES = 3;

export interface PartsCut extends HopperCut {
  /** Tiles of keys in shared memory; `stages` are of queries. */
  readonly keyStages: number;
}

/** The cut of what lists of 16 rows find in blocks of 64 keys. */
export function hopperPartsCut(
  shape: AttentionShape,
  isLatent: boolean,
  facts: DeviceFacts,
): PartsCut | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const isHere = facts.capability === 90 && isBackwardShape(shape);
  if (!IN_USE.parts || !isHere) return undefined;
  const keys = 64;
  const keyStages = PART_KEY_STAGES;
  const keyColumns = wholeChunks(width + ropeWidth);
  const columns = keyColumns + (isLatent ? 0 : wholeChunks(valueWidth));
  const bytesOf = (stages: number) =>
    2 * keys * (stages * keyColumns + keyStages * columns) + SPARE_BYTES;
  // Barriers, and what the four lists of a tile of queries are.
  const tables = (stages: number) => 16 * (5 * stages + keyStages);
  const stages = [8, 7, 6, 5, 4, 3].find(
    (n) => n >= PART_GROUPS && bytesOf(n) + tables(n) <= facts.sharedBytes,
  );
  if (stages === undefined) return undefined;
  const rows = 64 * PART_GROUPS;
  return { rows, keys, stages, keyStages, sharedBytes: bytesOf(stages) };
}

/** Sums of dQ at most: a share of the device's memory. */
const mostSumBytes = ({ totalBytes }: DeviceFacts) => totalBytes / 16;

/** Tiles of dO, as in hopper-backward.cu: only those of q are needed for long. */
const GRADIENT_STAGES = 2;

export interface WalkCut extends HopperCut {
  /** Whether parts of dQ are added by way of shared memory. */
  readonly isBulk: boolean;
}

/** Whether walks are over a window, and all of one length. */
const isWindowed = ({ kind, window = 1, sequences }: View) =>
  kind === 'ATTENTION' && window + ROWS - 1 < sequences.maxQueries;

/** The cut of all gradients in one walk: its `keys` are rows of queries. */
export function hopperBackwardCut(
  shape: AttentionShape,
  isLatent: boolean,
  view: View,
  facts: DeviceFacts,
): WalkCut | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const few = Math.min(view.rows, view.keys) <= ROWS / 2;
  if (!IN_USE.backward || few || view.kind === 'SELECTED') return undefined;
  // Sums of dK and dV leave registers for 64 rows of queries at a time.
  const keys = 64;
  const fits =
    isHopperKey(shape, facts, ODD) &&
    isHopperValue(columnsOf(shape).values) &&
    width + ropeWidth <= 128;
  if (!fits || !isAscending(view.sequences)) return undefined;
  const keyColumns = wholeChunks(width + ropeWidth);
  const sums = rowTilesOf(view, keys) * shape.keyHeads * keys * keyColumns;
  if (4 * sums > mostSumBytes(facts)) return undefined;
  const valueColumns = wholeChunks(valueWidth);
  const own = keyColumns + (isLatent ? 0 : valueColumns);
  // Gradients of scores twice; tiles of q, and of dO with each row's LSE and
  // dO . o.
  const stages = 4;
  const streamed = stages * keyColumns + GRADIENT_STAGES * valueColumns;
  // A window's rows are added to by a few tiles of keys, of which each waits for
  // the one before: registers are there sooner.
  const isBulk = !isWindowed(view);
  const sharedBytes =
    2 * (ROWS * (own + 2 * keys) + keys * streamed) +
    (isBulk ? 4 * keys * keyColumns : 0) +
    TILE_BYTES;
  if (sharedBytes + WALK_BYTES > facts.sharedBytes) return undefined;
  return { rows: ROWS, keys, stages, sharedBytes, isBulk };
}

/** Their rows of queries stand one behind the other. */
function isAscending({ list }: Sequences): boolean {
  let end = 0;
  return list.every(({ queryStart, queryCount }) => {
    const follows = queryStart >= end;
    end = queryStart + queryCount;
    return follows;
  });
}

/** Tiles of a unit's rows: each sequence begins with one of its own. */
function rowTilesOf({ sequences, unitHeads }: View, keys: number): number {
  const { queryRows, count } = sequences;
  return Math.floor((queryRows * unitHeads) / keys) + count;
}

/** What an item costs beside its walk, in tiles of rows. */
const ITEM_TILES = 6;
/** Longer ones would lose step, and share no rows in the L2 cache. */
const MOST_TILES = 2048;
/** Shorter ones are mostly such costs. */
const LEAST_TILES = 16;

export interface HopperPlan {
  /** Tiles of keys by ranges of rows, of all heads and sequences. */
  readonly items: number;
  readonly keyTiles: number;
  /** Tiles of rows of a key head. */
  readonly rowTiles: number;
  /** Elements of the sums of all tiles of rows, and of all tiles of keys. */
  readonly rowSums: number;
  readonly keySums: number;
  /** Tiles of rows of a range, and how many ranges there are. */
  readonly range: number;
  readonly ranges: number;
  /** Tiles of rows after which a window's walk begins anew. */
  readonly cycle: number;
}

/**
 * How one walk for all gradients is shared out: ranges of rows, so that shares
 * are alike and blocks of threads with different keys read the same rows at the
 * same time. All walks over a window are alike; they read the same rows if all
 * start at multiples of their length.
 */
export function hopperPlan(
  shape: AttentionShape,
  view: View,
  { rows, keys }: WalkCut,
  { multiprocessors }: DeviceFacts,
): HopperPlan {
  const { kind, sequences, unitHeads, window = 1, length = 1 } = view;
  const { stride = 1 } = view;
  const { keyHeads, width, ropeWidth } = shape;
  const columns = columnsOf(shape);
  const units = keyHeads * sequences.count;
  const queries = sequences.maxQueries;
  const keyTiles = view.keyTiles(rows);
  const tilesOf = (count: number) => Math.ceil((count * unitHeads) / keys);
  const seenBy = window + rows - 1;
  const isWindow = isWindowed(view);
  const cycle = isWindow
    ? tilesOf(seenBy) + ((rows * unitHeads) % keys > 0 ? 1 : 0)
    : 2 ** 30;
  const walks = Array.from({ length: keyTiles }, (_, tile) => {
    const first =
      kind === 'COMPRESSED' ? tile * rows * stride + length - 1 : tile * rows;
    return tilesOf(
      isWindow ? Math.min(seenBy, queries - first) : queries - first,
    );
  });
  const longest = Math.max(1, ...walks);
  const steps = units * total(walks);
  const costOf = (range: number) => {
    const items = units * total(walks.map((walk) => Math.ceil(walk / range)));
    const isAlike = isWindow && range >= longest;
    if (isAlike)
      return Math.ceil(items / multiprocessors) * (range + ITEM_TILES);
    return (steps + items * ITEM_TILES) / multiprocessors + range / 2;
  };
  const ranges: number[] = [];
  for (let range = longest; range >= 1; range = Math.ceil(range / 2)) {
    const isShort = range < LEAST_TILES && ranges.length > 0;
    if (isShort) break;
    if (isWindow || range <= MOST_TILES) ranges.push(range);
    if (range === 1) break;
  }
  const best = ranges.reduce((a, b) => (costOf(b) < costOf(a) ? b : a));
  const all = tilesOf(queries);
  // A window's walk begins anywhere: no range cuts it.
  const range = isWindow && best === longest ? Math.max(1, all) : best;
  const count = Math.max(1, Math.ceil(all / range));
  const rowTiles = rowTilesOf(view, keys);
  return {
    items: units * keyTiles * count,
    keyTiles,
    rowTiles,
    rowSums: keyHeads * rowTiles * keys * wholeChunks(width + ropeWidth),
    keySums: units * keyTiles * rows * (columns.keys + columns.values),
    range,
    ranges: count,
    cycle,
  };
}

/** The cut of the pass over queries, as of the forward one. */
export function hopperQueriesCut(
  shape: AttentionShape,
  isLatent: boolean,
  view: View,
  facts: DeviceFacts,
): HopperCut | undefined {
  if (!IN_USE.queries || view.rows <= ROWS / 2) return undefined;
  const sums = shape.width + shape.ropeWidth;
  return backwardCut(shape, isLatent, view, facts, 204, sums);
}

/** The cut of the pass over keys: its `keys` are rows of queries. */
export function hopperKeysCut(
  shape: AttentionShape,
  view: View,
  facts: DeviceFacts,
): HopperCut | undefined {
  if (!IN_USE.keys || view.keys <= ROWS / 2) return undefined;
  const sums = shape.width + shape.ropeWidth + shape.valueWidth;
  return backwardCut(shape, false, view, facts, 208, sums);
}

/**
 * As much of the other side at a time as leaves so many registers with the sums
 * of so many columns: scores and dP, and one of them once more in 16 bits.
 */
function backwardCut(
  shape: AttentionShape,
  isLatent: boolean,
  { kind }: View,
  facts: DeviceFacts,
  registers: number,
  sums: number,
): HopperCut | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const fits = isHopperKey(shape, facts) && isHopperValue(valueWidth);
  if (!fits || kind === 'SELECTED' || kind === 'MASKED') return undefined;
  const most = Math.floor((registers - sums / 2) / 1.25 / 16) * 16;
  const keys = Math.min(128, most);
  const keyColumns = wholeChunks(width + ropeWidth);
  const columns = keyColumns + wholeChunks(valueWidth);
  const streamed = isLatent ? keyColumns : columns;
  // With each row of queries its LSE and dO . o.
  const bytesOf = (stages: number) =>
    2 * (ROWS * columns + stages * keys * (streamed + 4)) + SPARE_BYTES;
  const stages = [3, 2].find((n) => bytesOf(n) <= facts.sharedBytes);
  if (stages === undefined) return undefined;
  return { rows: ROWS, keys, stages, sharedBytes: bytesOf(stages) };
}

/** Entries, statistics and barriers of a block of threads, which are not asked for. */
const ITEM_BYTES = 2560;

/**
 * The cut of the walk over those that chose a block, where it is for such a walk
 * at all: two blocks of threads a multiprocessor, each with a block of keys.
 */
export function hopperBlocksTile(
  shape: AttentionShape,
  isLatent: boolean,
  facts: DeviceFacts,
): FlashTile | undefined {
  const { width, ropeWidth, valueWidth } = shape;
  const fits =
    isHopperKey(shape, facts) &&
    isHopperValue(valueWidth) &&
    width + ropeWidth <= 128;
  if (!IN_USE.blocks || !fits) return undefined;
  const [rows, keys, blocks] = [64, 64, 2];
  const keyColumns = wholeChunks(width + ropeWidth);
  const columns = keyColumns + wholeChunks(valueWidth);
  const own = isLatent ? keyColumns : columns;
  const bytesOf = (stages: number) =>
    2 * (rows * (own + keys) + stages * keys * columns) + SPARE_BYTES;
  const stages = [3, 2].find((n) =>
    fitTogether(blocks, bytesOf(n) + ITEM_BYTES, facts),
  );
  if (stages === undefined) return undefined;
  const sharedBytes = bytesOf(stages);
  return { rows, warps: warpsOf(rows), keys, stages, blocks, sharedBytes };
}

/** Few heads of several leaders share a warp's 16 rows. */
const PACKS_LEADERS = true;

export interface RankingCut extends HopperCut {
  /** Rows that each leader has. */
  readonly leaderRows: number;
  /** Tiles of rows in shared memory. */
  readonly queryStages: number;
}

/**
 * The cut of ranking, for a warp the heads of one leader, two or four; none where
 * it is for other kernels.
 * @param tile the cut of those, which tells what else it is for, and heads of a
 *   group.
 */
export function hopperImportanceCut(
  shape: AttentionShape,
  tile: { readonly headTiles: number; readonly share?: number } | undefined,
  facts: DeviceFacts,
): RankingCut | undefined {
  if (!IN_USE.importance || tile?.headTiles !== 1) return undefined;
  if (!isHopperKey(shape, facts, ODD)) return undefined;
  // Scores alone leave registers for as many warps as there can be.
  const [rows, keys] = [256, 128];
  const { share = 16 } = tile;
  const few = share <= 4 ? 4 : share <= 8 ? 8 : 16;
  const leaderRows = PACKS_LEADERS ? few : 16;
  const columns = wholeChunks(shape.width + shape.ropeWidth);
  const tables = (rows / leaderRows) * (32 + keys) * 4;
  // The next rows come while the last ones' keys do, where there is room.
  const rings = [
    { queryStages: 2, stages: 2 },
    ...[4, 3, 2].map((stages) => ({ queryStages: 1, stages })),
  ];
  const bytesOf = ({ queryStages, stages }: (typeof rings)[number]) =>
    2 * columns * (queryStages * rows + stages * keys) + SPARE_BYTES;
  const ring = rings.find((x) => bytesOf(x) + tables <= facts.sharedBytes);
  if (ring === undefined) return undefined;
  return { rows, keys, ...ring, sharedBytes: bytesOf(ring), leaderRows };
}

export function hopperLaunch(
  { width, ropeWidth, valueWidth, dtype }: AttentionShape,
  { kind, unitHeads, sharing }: Pick<View, 'kind' | 'unitHeads' | 'sharing'>,
  latent: boolean,
  { rows, keys, stages, sharedBytes }: HopperCut,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> {
  return {
    defines: {
      T: dtype,
      VIEW: kind,
      WARPS: warpsOf(rows),
      ROWS: rows,
      N: keys,
      STAGES: stages,
      WIDTH: width,
      ROPE: ropeWidth,
      VALUE: valueWidth,
      LATENT: latent ? 1 : 0,
      BLOCK: 1,
      UNIT: unitHeads,
      ...(kind === 'MASKED' && sharing && { SHARING: sharing }),
    },
    threads: [32 * warpsOf(rows)],
    sharedBytes,
  };
}

/** Tiles of rows, which blocks of threads take by turns: one a multiprocessor. */
export function hopperGrid(
  { heads }: AttentionShape,
  view: View,
  rows: number,
): { count: number; arguments: Launch['arguments'] } {
  const tiles = view.rowTiles(rows);
  const sequences = view.sequences.count;
  const count = tiles * (heads / view.unitHeads) * sequences;
  return { count, arguments: [count, tiles, sequences].map(i32) };
}
