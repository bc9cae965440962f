/**
 * Selected attention as full attention that hides what a list does not have.
 * Lists of few rows make small tiles, which the card multiplies slowly: where
 * they see a large share of the past, more products in whole tiles take less time.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Sequences,
  Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32, i64 } from '../launch';
import { attendInTiles } from './attention-forward';
import {
  type AttentionShape,
  shapeOf,
  total,
  type View,
} from './attention-tile';
import { elementwise, extent, type KernelContext } from './context';
import { backwardInOneWalk } from './dense-backward';
import { columnsOf, isLatent } from './flash';
import type { SelectedView } from './gradient-parts';
import {
  type HopperCut,
  hopperBackwardCut,
  hopperForwardCut,
  hopperGrid,
  type WalkCut,
} from './hopper';

/**
 * Pairs of a query and a key in all of the past, for each pair of a list, up to
 * which it is in use, by rows of a list: none is for more of them. Measured on
 * one H100 in bf16. With 16 rows of 88 columns both ways took the same time at
 * 4.3 (8k tokens, lists of 1,024 keys), masks 40 % less at 2.3 (4k); with 16 rows
 * of 192 columns 29 % less at 4.3. With 32 rows of 128 columns masks took 39 %
 * more at 4.3, and 19 % less at 2.3, backward the same.
 */
const DENSE_SHARES = {
  forward: [
    { rows: 16, columns: 96, share: 4 },
    { rows: 16, columns: 256, share: 6 },
    { rows: 32, columns: 256, share: 2.5 },
  ],
  backward: [{ rows: 16, columns: 256, share: 4 }],
};
/** Tiles of rows a multiprocessor: fewer would leave some idle. */
const LEAST_TILES = 2;
/** Keys of a bit of a mask, and of a word. */
const BIT_KEYS = 16;
const WORD_KEYS = 32 * BIT_KEYS;

/** The walk over all keys, and its cut. */
export interface MaskedWalk<Cut> {
  readonly view: SelectedView;
  readonly cut: Cut;
}

/** None where lists are walked over. */
export function maskedForward(
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): MaskedWalk<HopperCut> | undefined {
  const shape = shapeOf(operands);
  if (!isForMasks(shape, view, DENSE_SHARES.forward)) return undefined;
  const dense = denseOf(view);
  const cut = hopperForwardCut(shape, isLatent(operands), dense, facts);
  if (!cut || !fillsCard(operands, dense, cut, facts)) return undefined;
  return { view: dense, cut };
}

/** None where lists, or those that chose a block, are walked over. */
export function maskedBackward(
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): MaskedWalk<WalkCut> | undefined {
  const shape = shapeOf(operands);
  if (!isForMasks(shape, view, DENSE_SHARES.backward)) return undefined;
  const dense = denseOf(view);
  const { unitHeads, sharing } = view;
  // A walk has all heads of its keys, and a warp's columns are of whole lists.
  const isOwn = unitHeads === shape.heads / shape.keyHeads;
  const isEven = [2, 4, 8, 16].includes(sharing * unitHeads);
  if (!isOwn || !isEven) return undefined;
  const cut = hopperBackwardCut(shape, isLatent(operands), dense, facts);
  if (!cut || !fillsCard(operands, dense, cut, facts)) return undefined;
  return { view: dense, cut };
}

export function attendMasked(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  { view, cut }: MaskedWalk<HopperCut>,
): void {
  const masks = listMasks(context, view);
  const masked = { ...view, indices: masks };
  attendInTiles(context, operands, outputs, masked, cut);
  masks.free();
}

export function backwardMasked(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  { view, cut }: MaskedWalk<WalkCut>,
): void {
  const masks = listMasks(context, view);
  const masked = { ...view, indices: masks };
  backwardInOneWalk(context, inputs, outputs, masked, cut);
  masks.free();
}

function isForMasks(
  shape: AttentionShape,
  view: SelectedView,
  shares: (typeof DENSE_SHARES)['forward'],
): boolean {
  const { sharing, unitHeads, blockSize } = view;
  const { keys } = columnsOf(shape);
  const most = shares.find(
    ({ rows, columns }) => sharing * unitHeads <= rows && keys <= columns,
  );
  if (!most || blockSize % BIT_KEYS > 0) return false;
  return visibleShare(view) <= most.share;
}

/** Pairs of a query and a key that it may see, for each that its list has. */
function visibleShare({ sequences, blockSize, indices }: SelectedView): number {
  const all = pairsOf(sequences, sequences.maxKeys);
  return all / pairsOf(sequences, extent(indices, 2) * blockSize);
}

/** Of all queries, if each sees so many keys of its past at most. */
function pairsOf({ list }: Sequences, most: number): number {
  // Of the queries at positions 0 .. end - 1.
  const upTo = (end: number) => {
    const whole = Math.min(end, most);
    return (whole * (whole + 1)) / 2 + (end - whole) * most;
  };
  return total(
    list.map(
      ({ keyCount, queryCount }) =>
        upTo(keyCount) - upTo(keyCount - queryCount),
    ),
  );
}

/** As of full attention: tiles of any rows of a unit, over all keys. */
function denseOf(view: SelectedView): SelectedView {
  const { sequences, unitHeads } = view;
  const { maxQueries, maxKeys, keyRoom } = sequences;
  const rows = maxQueries * unitHeads;
  return {
    ...view,
    kind: 'MASKED',
    rows,
    keys: maxKeys,
    walk: keyRoom,
    rowTiles: (tile) => Math.ceil(rows / tile),
    keyTiles: (tile) => Math.ceil(maxKeys / tile),
  };
}

function fillsCard(
  operands: AttentionOperands,
  view: View,
  { rows }: HopperCut,
  { multiprocessors }: DeviceFacts,
): boolean {
  const { count } = hopperGrid(shapeOf(operands), view, rows);
  return count >= LEAST_TILES * multiprocessors;
}

/** Lists as bits, i32 `[L, lists, words]`; see the kernel. */
function listMasks(
  context: KernelContext,
  { indices, sequences, blockSize }: SelectedView,
): Tensor {
  const lists = extent(indices, 0) * extent(indices, 1);
  const words = Math.ceil(sequences.keyRoom / WORD_KEYS);
  const masks = context.scratch(lists * words, 'i32');
  context.run({
    file: 'attention-parts',
    entry: 'listMasks',
    defines: { T: 'f32' },
    ...elementwise(masks.size),
    arguments: [
      ...[indices, masks, i64(lists)],
      ...[extent(indices, 2), words, blockSize / BIT_KEYS].map(i32),
    ],
  });
  return masks.reshape([extent(indices, 0), extent(indices, 1), words]);
}
