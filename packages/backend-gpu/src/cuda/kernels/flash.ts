/**
 * Which shapes attention in 16-bit types takes its fast kernels for, and how
 * those are cut. Their widths are compiled in, so a model's first step
 * compiles them.
 */
import type { AttentionOperands, RankingAttributes } from '@asa/core';
import type { DeviceFacts } from '../driver';
import type { Launch } from '../launch';
import type { AttentionShape, CallView } from './attention-tile';

export interface FlashTile {
  readonly rows: number;
  readonly warps: number;
  /** Keys at a time, and tiles of them in shared memory. */
  readonly keys: number;
  readonly stages: number;
  /** Blocks of threads that one multiprocessor should hold. */
  readonly blocks: number;
  readonly sharedBytes: number;
}

/** Tiles of keys in shared memory: one in use, one on its way. */
const STAGES = 2;
type Cut = Omit<FlashTile, 'sharedBytes' | 'stages'> &
  Partial<Pick<FlashTile, 'stages'>>;

/** Rows are copied in pieces of 16 bytes; sums of wider ones need registers. */
export function isFlashShape(shape: AttentionShape): boolean {
  const { width, ropeWidth, valueWidth, dtype } = shape;
  const isWhole = [width, ropeWidth, valueWidth].every((n) => n % 8 === 0);
  const { keys, values } = columnsOf(shape);
  const isTyped = dtype === 'f16' || dtype === 'bf16';
  return isTyped && isWhole && keys <= 256 && values <= 256;
}

/** Columns of a tile's keys and values: products take 16 at a time. */
export function columnsOf({ width, ropeWidth, valueWidth }: AttentionShape) {
  const whole = (n: number) => 16 * Math.ceil(n / 16);
  return { keys: whole(width + ropeWidth), values: whole(valueWidth) };
}

/** Of each block's shared memory the device has some for itself. */
const RESERVED_BYTES = 1024;

/** Whether so many blocks of threads of so many bytes share a multiprocessor. */
export const fitTogether = (
  blocks: number,
  bytes: number,
  { sharedBytes }: DeviceFacts,
): boolean => blocks * (bytes + RESERVED_BYTES) <= sharedBytes + RESERVED_BYTES;

/** Rows and key tables of a block, which are not asked for. */
export const TABLE_BYTES = 3072;

/**
 * The cut of the forward pass; none where the shape is for the kernels of any
 * width: f32, widths that are no multiples of 8, and very wide ones.
 * @param rows how many there are to share a tile.
 */
export function flashForwardTile(
  shape: AttentionShape,
  isLatent: boolean,
  rows: number,
  listLength: number,
  sharedBytes: number,
): FlashTile | undefined {
  if (!isFlashShape(shape)) return undefined;
  const columns = columnsOf(shape);
  return firstFitting(
    forwardCuts(columns, rows, listLength > 0),
    sharedBytes,
    (cut) => {
      const { keys, stages = STAGES } = cut;
      const streamed = columns.keys + (isLatent ? 0 : columns.values);
      return Math.max(
        2 * (stages * keys * streamed + cut.rows * columns.keys) +
          4 * listLength,
        partBytes(cut, columns.values),
      );
    },
  );
}

/** The first cut of which shared memory holds as many blocks as it asks for. */
function firstFitting(
  cuts: readonly Cut[],
  sharedBytes: number,
  bytesOf: (cut: Cut) => number,
): FlashTile | undefined {
  for (const cut of cuts) {
    const needed = bytesOf(cut);
    if (cut.blocks * (needed + TABLE_BYTES) > sharedBytes) continue;
    return { stages: STAGES, ...cut, sharedBytes: needed };
  }
  return undefined;
}

/** Parts of rows that several warps have summed, in f32; see `emitRows`. */
function partBytes(
  { rows, warps }: Pick<Cut, 'rows' | 'warps'>,
  columns: number,
): number {
  const parts = (16 * warps) / rows;
  return parts > 1 ? 4 * parts * rows * (columns + 8) : 0;
}

/** Sums of a backward pass, of more columns than a forward one, in registers. */
export function isBackwardShape(shape: AttentionShape): boolean {
  const { keys, values } = columnsOf(shape);
  return isFlashShape(shape) && keys <= 192 && values <= 128;
}

/** The cut of the pass over queries, as of the forward one. */
export function flashQueriesTile(
  shape: AttentionShape,
  isLatent: boolean,
  rows: number,
  listLength: number,
  sharedBytes: number,
): FlashTile | undefined {
  if (!isBackwardShape(shape)) return undefined;
  const columns = columnsOf(shape);
  const bytesOf = (cut: Cut) =>
    Math.max(
      4 * cut.keys * (columns.keys + (isLatent ? 0 : columns.values)) +
        2 * cut.rows * (columns.keys + columns.values) +
        4 * listLength,
      partBytes(cut, columns.keys),
    );
  return firstFitting(queriesCuts(columns, rows), sharedBytes, bytesOf);
}

function queriesCuts(columns: Columns, rows: number): readonly Cut[] {
  const warps = 4;
  if (rows <= 32) {
    const cut = { rows: rows <= 16 ? 16 : 32, warps, keys: 64 };
    const most = rows <= 16 && isNarrow(columns) ? [4] : [];
    return [...most, 3, 2, 1].map((blocks) => ({ ...cut, blocks }));
  }
  if (rows > 64 && columns.keys <= 128) {
    return [2, 1].map((blocks) => ({ rows: 128, warps, keys: 32, blocks }));
  }
  return [
    { rows: 64, warps, keys: 64, blocks: 2 },
    { rows: 64, warps, keys: 32, blocks: 2 },
    { rows: 64, warps, keys: 32, blocks: 1 },
  ];
}

/**
 * The cut of the pass over keys: its rows are keys, its `keys` rows of queries.
 * @param keys how many share a walk.
 */
export function flashKeysTile(
  shape: AttentionShape,
  isLatent: boolean,
  keys: number,
  sharedBytes: number,
): FlashTile | undefined {
  if (!isBackwardShape(shape)) return undefined;
  const columns = columnsOf(shape);
  const rows = keys <= 16 ? 16 : keys <= 32 ? 32 : 64;
  const cut = { rows, warps: 4, keys: rows > 32 ? 32 : 64 };
  // With each row its LSE and dO . o.
  const stage = cut.keys * (columns.keys + columns.values + 4);
  const own = cut.rows * (columns.keys + (isLatent ? 0 : columns.values));
  const needed = Math.max(
    2 * (2 * stage + own),
    partBytes(cut, Math.max(columns.keys, columns.values)),
  );
  // The chosen leaders take more room than the tables.
  const fits = (blocks: number) =>
    blocks * (needed + 4 * TABLE_BYTES) <= sharedBytes;
  if (!fits(1)) return undefined;
  const isLight = isNarrow(columns) && (isLatent || columns.keys <= 80);
  const blocks = rows === 16 && isLight && fits(3) ? 3 : 2;
  return { ...cut, blocks, stages: STAGES, sharedBytes: needed };
}

type Columns = ReturnType<typeof columnsOf>;

/** Sums of so few columns leave registers for one more block of 16 rows. */
const isNarrow = ({ keys, values }: Columns) => keys <= 96 && values <= 64;

/** The fastest that registers allow, then smaller ones for little memory. */
function forwardCuts(
  columns: Columns,
  rows: number,
  isSelected: boolean,
): readonly Cut[] {
  const isWide = columns.keys > 192 || columns.values > 128;
  const few = { rows: rows <= 16 ? 16 : rows <= 32 ? 32 : 64, warps: 4 };
  const half = { rows: few.rows, warps: Math.min(4, few.rows / 8), keys: 32 };
  const most = { rows: 128, warps: 4, blocks: 2 };
  const isFewest = few.rows === 16 && !isWide;
  return [
    // Two tiles of rows a warp read each key half as often.
    ...(rows > 64 && !isWide ? [64, 32] : []).map((keys) => ({
      ...most,
      keys,
    })),
    // In decoding memory is all there is to wait for: two tiles on their way.
    ...(isFewest && !isSelected
      ? [{ ...few, keys: 64, blocks: 2, stages: 3 }]
      : []),
    ...[
      ...(isFewest && isNarrow(columns) ? [4] : []),
      ...(isWide ? [1] : [3, 2]),
    ].map((blocks) => ({ ...few, keys: 64, blocks })),
    // A warp has 16 keys or more.
    { ...half, blocks: 1 },
  ];
}

/** Keys of a tile of importance. */
const RANKED_KEYS = 64;

/**
 * How the importance of so many leaders is cut: of each a row tile for 16 heads;
 * none where the shape is for the kernel of any width.
 */
export function importanceTile(
  shape: AttentionShape,
  attributes: RankingAttributes,
  leaders: number,
  { sharedBytes }: DeviceFacts,
):
  | (FlashTile & { headTiles: number; leaders: number; share: number })
  | undefined {
  if (!isFlashShape({ ...shape, valueWidth: 16 })) return undefined;
  const { groups, length, stride, blockSize } = attributes;
  const share = shape.heads / groups;
  const headTiles = Math.ceil(share / 16);
  // A group's heads must share their keys and a warp, a block's probabilities a
  // tile and the end of the one before.
  const isSmall = headTiles <= 2 && length / stride <= 33;
  const isWhole =
    groups % shape.keyHeads === 0 && RANKED_KEYS % (blockSize / stride) === 0;
  // Few leaders, as in decoding, would leave most rows empty.
  if (!isSmall || !isWhole || leaders < 4) return undefined;
  const columns = columnsOf(shape).keys;
  const [rows, stages] = [128, 2];
  const needed = 2 * columns * (rows + stages * RANKED_KEYS);
  if (needed + 3 * TABLE_BYTES > sharedBytes) return undefined;
  return {
    rows,
    warps: 4,
    keys: RANKED_KEYS,
    stages,
    blocks: columns > 128 ? 2 : 3,
    sharedBytes: needed,
    headTiles,
    share,
    leaders: rows / 16 / headTiles,
  };
}

/** Keys and values are the same rows: each is loaded once. */
export function isLatent({ k, v }: AttentionOperands): boolean {
  return k.storage === v.storage && k.shape.every((n, i) => n === v.shape[i]);
}

export function flashLaunch(
  { width, ropeWidth, valueWidth, dtype }: AttentionShape,
  { kind, blockSize = 1 }: CallView,
  latent: boolean,
  { rows, warps, keys, stages, blocks, sharedBytes }: FlashTile,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> {
  return {
    defines: {
      T: dtype,
      VIEW: kind,
      WARPS: warps,
      ROWS: rows,
      N: keys,
      STAGES: stages,
      BLOCKS: blocks,
      WIDTH: width,
      ROPE: ropeWidth,
      VALUE: valueWidth,
      LATENT: latent ? 1 : 0,
      BLOCK: blockSize,
    },
    threads: [32 * warps],
    sharedBytes,
  };
}
