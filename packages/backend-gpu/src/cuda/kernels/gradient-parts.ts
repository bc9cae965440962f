/** What the gradients of selected attention in one walk have in common. */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Tensor,
} from '@asa/core';
import { i32, type Launch } from '../launch';
import {
  coversQueries,
  listLength,
  rowStatistics,
  shapeOf,
  startQueries,
  sumHeads,
  type View,
} from './attention-tile';
import { elementwise, extent, type KernelContext } from './context';
import { type FlashTile, flashLaunch, isLatent } from './flash';

/** A view of selected attention. */
export type SelectedView = View &
  Required<Pick<View, 'indices' | 'blockSize' | 'sharing'>>;

/** Leaders of each sequence that are walked over at a time. */
export interface Leaders {
  readonly first: number;
  readonly count: number;
}

/** Sums of the keys' gradients in f32, to which those of some leaders are added. */
export interface KeySums {
  readonly k: Tensor;
  readonly v: Tensor;
  /** The rotary key is shared: each key head gives its part. */
  readonly kRope: Tensor | undefined;
}

/** Of each row its LSE and dO . o, beside the operands. */
export type WalkInputs = AttentionOperands &
  AttentionResults & { readonly statistics: Tensor };

/** A leader's number and its place in a list share 32 bits. */
const MOST_LEADERS = 2 ** 15;

/** Calls `walk` for `step` leaders at a time, and rounds their sums. */
export function walkLeaders(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  { sequences, sharing }: SelectedView,
  step: number,
  walk: (inputs: WalkInputs, sums: KeySums, leaders: Leaders) => void,
): void {
  const { keyHeads } = shapeOf(inputs);
  const { dQ, dK, dV, dKRope } = outputs;
  if (!coversQueries(sequences, dQ)) startQueries(context, inputs, outputs);
  const statistics = rowStatistics(context, inputs);
  const sums = {
    k: zeros(context, dK.size, 'f32'),
    v: zeros(context, dV.size, 'f32'),
    kRope: dKRope && zeros(context, dKRope.size * keyHeads, 'f32'),
  };
  const all = leadersOf({ sequences, sharing });
  const most = Math.min(MOST_LEADERS, Math.max(1, step));
  for (let first = 0; first < all; first += most) {
    const count = Math.min(most, all - first);
    walk({ ...inputs, statistics }, sums, { first, count });
  }
  statistics.free();
  sumHeads(context, sums.k, 1, dK);
  sumHeads(context, sums.v, 1, dV);
  if (sums.kRope && dKRope) sumHeads(context, sums.kRope, keyHeads, dKRope);
  for (const sum of [sums.k, sums.v, sums.kRope]) sum?.free();
}

/** Leaders of the sequence that has most. */
export const leadersOf = ({
  sequences,
  sharing,
}: Pick<SelectedView, 'sequences' | 'sharing'>) =>
  Math.ceil(sequences.maxQueries / sharing);

/** Rows of the inverse of the lists: the blocks of each list. */
export function inverseOf({ sequences, indices, blockSize }: SelectedView): {
  lists: number;
  blocks: number;
  rows: number;
} {
  const lists = extent(indices, 1);
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  return { lists, blocks, rows: sequences.count * lists * blocks };
}

/** A file's kernels for these operands, each with the call before its own. */
export function launcher(
  context: KernelContext,
  file: Launch['file'],
  inputs: AttentionOperands,
  view: SelectedView,
  tile: FlashTile,
  more: Launch['defines'],
): (
  launch: Pick<Launch, 'entry' | 'grid' | 'arguments'> & Partial<Launch>,
) => void {
  const { defines } = flashLaunch(
    shapeOf(inputs),
    view,
    isLatent(inputs),
    tile,
  );
  const { unitHeads, sharing } = view;
  return (launch) =>
    context.run({
      file,
      threads: [32 * tile.warps],
      ...launch,
      defines: { ...defines, UNIT: unitHeads, SHARING: sharing, ...more },
    });
}

/** At which place each leader has a block, 16 bits each; see the kernel. */
export function listPlaces(
  context: KernelContext,
  view: SelectedView,
  { first, count }: Leaders,
): Tensor {
  const { indices, sequences, sharing } = view;
  const { lists, blocks, rows } = inverseOf(view);
  const places = zeros(context, Math.ceil((rows * count) / 2), 'i32');
  const { grid, threads } = elementwise(count * lists * listLength(view));
  context.run({
    file: 'attention-parts',
    entry: 'listPlaces',
    defines: { T: 'f32' },
    grid: [grid[0], 1, sequences.count],
    threads,
    arguments: [
      indices,
      sequences.on(indices.backend),
      places,
      ...[lists, listLength(view), sharing, blocks, first, count].map(i32),
    ],
  });
  return places;
}

function zeros(
  context: KernelContext,
  elements: number,
  dtype: 'f32' | 'i32',
): Tensor {
  const x = context.scratch(elements, dtype);
  context.clear(x);
  return x;
}
