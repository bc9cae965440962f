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
  denseTiles,
  shapeOf,
  total,
  type View,
} from './attention-tile';
import {
  elementwise,
  extent,
  type KernelContext,
  scratchBytes,
} from './context';
import { backwardInOneWalk } from './dense-backward';
import { columnsOf, isLatent } from './flash';
import type { SelectedView } from './gradient-parts';
import {
  type HopperCut,
  hopperBackwardCut,
  hopperForwardCut,
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
/** A list's tile has so many rows, though the list may have fewer. */
const LEAST_ROWS = 16;
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
export const maskedForward = (
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): MaskedWalk<HopperCut> | undefined =>
  walkOf(operands, view, facts, DENSE_SHARES.forward, hopperForwardCut);

/** None where lists, or those that chose a block, are walked over. */
export function maskedBackward(
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): MaskedWalk<WalkCut> | undefined {
  const { unitHeads, sharing } = view;
  const { heads, keyHeads } = shapeOf(operands);
  // A walk has all heads of its keys, and a warp's columns are of whole lists.
  const isOwn = unitHeads === heads / keyHeads;
  const isEven = [2, 4, 8, 16].includes(sharing * unitHeads);
  if (!isOwn || !isEven) return undefined;
  return walkOf(
    ...([operands, view, facts, DENSE_SHARES.backward] as const),
    hopperBackwardCut,
  );
}

export function attendMasked(
  context: KernelContext,
  operands: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  { view, cut }: MaskedWalk<HopperCut>,
): void {
  withMasks(context, view, (masked) =>
    attendInTiles(context, operands, outputs, masked, cut),
  );
}

export function backwardMasked(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  { view, cut }: MaskedWalk<WalkCut>,
): void {
  withMasks(context, view, (masked) =>
    backwardInOneWalk(context, inputs, outputs, masked, cut),
  );
}

function walkOf<Cut extends HopperCut>(
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
  shares: (typeof DENSE_SHARES)['forward'],
  cutOf: (
    shape: AttentionShape,
    isLatent: boolean,
    view: View,
    facts: DeviceFacts,
  ) => Cut | undefined,
): MaskedWalk<Cut> | undefined {
  const shape = shapeOf(operands);
  if (!isForMasks(shape, view, shares)) return undefined;
  const { sequences, unitHeads } = view;
  const tiles = denseTiles(sequences, unitHeads);
  const dense: SelectedView = { ...view, kind: 'MASKED', ...tiles };
  const cut = cutOf(shape, isLatent(operands), dense, facts);
  const fits = 4 * masksOf(view).words <= scratchBytes(facts);
  if (!cut || !fits || !fillsCard(operands, dense, cut, facts)) {
    return undefined;
  }
  return { view: dense, cut };
}

function isForMasks(
  shape: AttentionShape,
  view: SelectedView,
  shares: (typeof DENSE_SHARES)['forward'],
): boolean {
  const { sharing, unitHeads, blockSize } = view;
  const { keys } = columnsOf(shape);
  const own = sharing * unitHeads;
  const most = shares.find(
    ({ rows, columns }) => own <= rows && keys <= columns,
  );
  if (!most || blockSize % BIT_KEYS > 0) return false;
  const unused = Math.max(1, LEAST_ROWS / own);
  return visibleShare(view) <= most.share * unused;
}

/**
 * Pairs of a query and a key that it may see, for each that its list has. It
 * depends on the queries and the room for keys, not on their number: a recording
 * serves all lengths. Queries begin the sequence where there is room for fewer
 * than as many again, else they are its last ones.
 */
function visibleShare({ sequences, blockSize, indices }: SelectedView): number {
  const all = pairsOf(sequences, sequences.keyRoom);
  return all / pairsOf(sequences, extent(indices, 2) * blockSize);
}

/** Of all queries, if each sees so many keys of its past at most. */
function pairsOf(
  { list, keyRoom, maxQueries }: Sequences,
  most: number,
): number {
  // Of the queries at positions 0 .. end - 1.
  const upTo = (end: number) => {
    const whole = Math.min(end, most);
    return (whole * (whole + 1)) / 2 + (end - whole) * most;
  };
  const past = 2 * maxQueries > keyRoom ? 0 : keyRoom - maxQueries;
  return total(
    list.map(({ queryCount }) => upTo(past + queryCount) - upTo(past)),
  );
}

function fillsCard(
  operands: AttentionOperands,
  { sequences, unitHeads }: View,
  { rows }: HopperCut,
  { multiprocessors }: DeviceFacts,
): boolean {
  const units = shapeOf(operands).heads / unitHeads;
  const tiles = sequences.list.map(({ queryCount }) =>
    Math.ceil((queryCount * unitHeads) / rows),
  );
  return units * total(tiles) >= LEAST_TILES * multiprocessors;
}

/** How masks of all lists lie: words of a list, and of all. */
function masksOf({ indices, sequences }: SelectedView) {
  const lists = extent(indices, 0) * extent(indices, 1);
  const perList = Math.ceil(sequences.keyRoom / WORD_KEYS);
  return { lists, perList, words: lists * perList };
}

/** Calls `walk` with masks in place of the view's lists. */
function withMasks(
  context: KernelContext,
  view: SelectedView,
  walk: (masked: View) => void,
): void {
  const masks = listMasks(context, view);
  walk({ ...view, indices: masks });
  masks.free();
}

/** Lists as bits, i32 `[L, lists, words]`; see the kernel. */
function listMasks(context: KernelContext, view: SelectedView): Tensor {
  const { indices, blockSize } = view;
  const { lists, perList, words } = masksOf(view);
  const masks = context.scratch(words, 'i32');
  context.run({
    file: 'attention-parts',
    entry: 'listMasks',
    defines: { T: 'f32' },
    ...elementwise(masks.size),
    arguments: [
      ...[indices, masks, i64(lists)],
      ...[extent(indices, 2), perList, blockSize / BIT_KEYS].map(i32),
    ],
  });
  return masks.reshape([extent(indices, 0), extent(indices, 1), perList]);
}
