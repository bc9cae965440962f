/**
 * Selected attention where each query has its list: a walk over the union of
 * the lists of eight neighbours; see the kernel.
 */
import type { AttentionOperands, AttentionResults } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32 } from '../launch';
import { call, listLength, shapeOf, startRows } from './attention-tile';
import type { KernelContext } from './context';
import {
  type FlashTile,
  flashLaunch,
  isBackwardShape,
  isLatent,
  TABLE_BYTES,
} from './flash';
import type { SelectedView } from './gradient-parts';

/** Lists of a union, one a warp. */
const LISTS = 8;
/** More blocks would leave no shared memory for keys. */
const MOST_WORDS = 1024;

/** The cut, and the blocks of threads for the rows of a sequence. */
export type UnionTile = FlashTile & {
  readonly tiles: number;
  /** Of a bitmap of all blocks. */
  readonly words: number;
};

/** None where lists have too many rows, or too few walks fill the card. */
export function unionTile(
  operands: AttentionOperands,
  view: SelectedView,
  { sharedBytes, multiprocessors }: DeviceFacts,
): UnionTile | undefined {
  const shape = shapeOf(operands);
  const { heads, width, ropeWidth, valueWidth } = shape;
  const keyWidth = width + ropeWidth;
  const { blockSize, sharing, unitHeads, sequences } = view;
  const isWhole = keyWidth % 16 === 0 && valueWidth % 16 === 0;
  if (!isBackwardShape(shape) || !isWhole) return undefined;
  if (sharing * unitHeads > 16 || blockSize !== 64) return undefined;
  const tiles = Math.ceil(view.rowTiles(16) / LISTS);
  const walks = (tiles * heads * sequences.count) / unitHeads;
  const words = Math.ceil(sequences.keyRoom / blockSize / 32);
  if (walks < 2 * multiprocessors || words > MOST_WORDS) return undefined;
  const [keys, stages] = [64, 6];
  const needed =
    2 * stages * keys * (keyWidth + (isLatent(operands) ? 0 : valueWidth)) +
    8 * (LISTS * listLength(view) + words);
  if (needed + TABLE_BYTES > sharedBytes) return undefined;
  return {
    ...{ rows: 16 * LISTS, warps: LISTS, keys, stages, blocks: 1 },
    ...{ sharedBytes: needed, tiles, words },
  };
}

export function attendByUnion(
  context: KernelContext,
  operands: AttentionOperands,
  { o, lse }: Pick<AttentionResults, 'o' | 'lse'>,
  view: SelectedView,
  tile: UnionTile,
): void {
  const { sequences, sharing, unitHeads } = view;
  startRows(context, sequences, { o, lse });
  const shape = shapeOf(operands);
  const launch = flashLaunch(shape, view, isLatent(operands), tile);
  context.run({
    file: 'flash-forward-union',
    entry: 'flashForwardUnion',
    ...launch,
    defines: { ...launch.defines, UNIT: unitHeads, SHARING: sharing },
    grid: [tile.tiles, shape.heads / unitHeads, sequences.count],
    arguments: [...call(operands, view), o, lse, i32(tile.words)],
  });
}
