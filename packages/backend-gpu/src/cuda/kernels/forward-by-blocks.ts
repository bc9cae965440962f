/**
 * Selected attention where each query has its list: a walk over those that
 * chose a block, and a sum over what each list found; see the kernel.
 */
import type { AttentionOperands, AttentionResults } from '@asa/core';
import type { DeviceFacts } from '../driver';
import { i32, type Launch } from '../launch';
import { call, listLength, shapeOf, startRows } from './attention-tile';
import { extent, type KernelContext, scratchBytes } from './context';
import {
  columnsOf,
  type FlashTile,
  fitTogether,
  flashLaunch,
  isBackwardShape,
  isLatent,
} from './flash';
import type { SelectedView } from './gradient-parts';
import { hopperLaunch, hopperPartsCut, type PartsCut } from './hopper';

/** Whether it is in use; what is not takes unions of lists. */
const IN_USE = true;

/** Most lists of an item; as many as two rounds of a block of threads. */
const ITEM = 16;
/** With more lists a block, on average, hardly anything is read less often. */
const MOST_LISTS = 2 * ITEM;
/** The same on Hopper, where an item's end makes nobody wait. */
const HOPPER_ITEM = 128;
const HOPPER_MOST_LISTS = 64;
/** A block that fewer lists of a chunk have is read too often. */
const LEAST_LISTS = 4;
/** With fewer blocks for each that a list chooses, unions share more. */
const LEAST_BLOCKS = 8;
/** A leader's number in a chunk and its place in a list share 32 bits. */
const MOST_LEADERS = 2 ** 16;
/** A table of them has to fit shared memory. */
const MOST_BLOCKS = 16_384;
/** Items that have been taken, and row tables. */
const TABLE_BYTES = 512;

/** Shares of scratch memory for parts: each range of chunks is two launches. */
const RANGE_SHARE = 2;

/** The cut, and how leaders are cut into chunks. */
export type ForwardBlocksTile = FlashTile & {
  /** Leaders of a chunk, and chunks of a unit of heads. */
  readonly most: number;
  readonly perUnit: number;
  /** Chunks whose parts have room. */
  readonly together: number;
  /** Blocks that a list may have. */
  readonly places: number;
  /** Lists of an item at most. */
  readonly item: number;
  /** Where Hopper's kernel makes the parts. */
  readonly hopper: PartsCut | undefined;
};

/** None where lists have too many rows, or blocks have too few lists. */
export function forwardBlocksTile(
  operands: AttentionOperands,
  view: SelectedView,
  facts: DeviceFacts,
): ForwardBlocksTile | undefined {
  const { multiprocessors } = facts;
  const shape = shapeOf(operands);
  const { blockSize, sharing, unitHeads, sequences } = view;
  if (!IN_USE || !isBackwardShape(shape)) return undefined;
  if (sharing * unitHeads > 16 || blockSize !== 64) return undefined;
  const columns = columnsOf(shape);

  const length = listLength(view);
  const places = Math.ceil(sequences.keyRoom / blockSize);
  // As many as there are if the first query is the last of its leader.
  const leaders = Math.floor((sequences.maxQueries - 2) / sharing) + 2;
  const perLeader = length * 16 * 2 * columns.values;
  const room = Math.floor((RANGE_SHARE * scratchBytes(facts)) / perLeader);
  // A query sees half of the blocks on average.
  const listsOf = (leaders: number) => (leaders * length) / (places / 2);
  const units = shape.heads / unitHeads;
  const pairs = leaders * units * sequences.count * length;
  const hopper = hopperPartsCut(shape, isLatent(operands), facts);
  // Few items would be shared out unevenly.
  const share = Math.max(ITEM, pairs / (32 * multiprocessors));
  const mostLists = hopper ? Math.min(HOPPER_MOST_LISTS, share) : MOST_LISTS;
  const most = Math.min(
    ...[leaders, room, MOST_LEADERS, Math.ceil(mostLists / listsOf(1))],
  );
  const isShared = listsOf(most) >= LEAST_LISTS;
  const together = Math.floor(room / most);
  const isSparse = places >= LEAST_BLOCKS * length && places <= MOST_BLOCKS;
  const isLarge = pairs >= 16 * ITEM * multiprocessors;
  if (!isShared || !isSparse || !isLarge) return undefined;

  const [rows, warps, keys] = [128, 4, 64];
  const needed =
    2 * keys * (columns.keys + (isLatent(operands) ? 0 : columns.values)) +
    2 * rows * columns.keys;
  const blocks = [3, 2, 1].find((n) =>
    fitTogether(n, needed + TABLE_BYTES, facts),
  );
  if (blocks === undefined) return undefined;
  return {
    ...{ rows, warps, keys, stages: 1, blocks, sharedBytes: needed },
    ...{ most, perUnit: Math.ceil(leaders / most), together, places },
    ...{ item: hopper ? HOPPER_ITEM : ITEM, hopper },
  };
}

export function attendByBlocks(
  context: KernelContext,
  operands: AttentionOperands,
  { o, lse }: Pick<AttentionResults, 'o' | 'lse'>,
  view: SelectedView,
  tile: ForwardBlocksTile,
): void {
  const { sequences, sharing, unitHeads } = view;
  const { indices } = view;
  const { most, perUnit, places, item, hopper } = tile;
  startRows(context, sequences, { o, lse });
  const shape = shapeOf(operands);
  const length = listLength(view);
  const units = shape.heads / unitHeads;
  const chunks = sequences.count * units * perUnit;
  const pairs = most * length;
  // Lists with a block, and those of which it is the own one, apart.
  const own = hopper ? 1 : 0;
  const numbers = places * (1 + own);
  // The last item of each may be of few lists.
  const itemRoom = Math.min(numbers, pairs) + Math.ceil(pairs / item);
  const together = Math.min(tile.together, chunks);
  const ranges = Math.ceil(chunks / together);
  const items = context.scratch(3 * ranges * together * itemRoom, 'i32');
  const entries = context.scratch(chunks * pairs, 'i32');
  const counts = context.scratch(2 * ranges, 'i32');
  const itemsOf = (range: number) => [
    ...[items, entries, counts],
    ...[range, together, itemRoom, 0].map(i32),
  ];
  const cut = [units, perUnit, most].map(i32);
  context.clear(counts);
  context.run({
    ...{ file: 'forward-items', entry: 'listItems' },
    defines: { BLOCK: tile.keys, ITEM: item, OWN: own },
    grid: [chunks],
    // As many as there can be: a multiprocessor may have one chunk.
    threads: [1024],
    sharedBytes: 4 * numbers,
    arguments: [
      ...[indices, sequences.on(indices.backend), ...itemsOf(0), ...cut],
      ...[sharing, extent(indices, 1), length, places].map(i32),
    ],
  });

  const slots = together * pairs;
  const parts = context.scratch(slots * 16 * columnsOf(shape).values, o.dtype);
  const partLse = context.scratch(slots * 16, 'f32');
  const given = call(operands, view);
  const { multiprocessors } = context.facts;
  const lists = { UNIT: unitHeads, SHARING: sharing, ITEM: item, OWN: own };
  const { defines, ...any } = flashLaunch(
    ...([shape, view, isLatent(operands), tile] as const),
  );
  const walk: Omit<Launch, 'arguments'> = hopper
    ? hopperWalk(hopper)
    : {
        ...{ file: 'flash-forward-blocks', entry: 'flashForwardBlocks' },
        defines: { ...defines, ...lists },
        grid: [tile.blocks * multiprocessors],
        ...any,
      };
  for (let range = 0; range < ranges; range++) {
    const first = range * together;
    context.run({
      ...walk,
      arguments: [...given, parts, partLse, ...itemsOf(range), ...cut],
    });
    context.run({
      ...{ file: 'join-lists', entry: 'joinLists' },
      defines: { ...defines, ...lists },
      grid: [most, Math.min(together, chunks - first)],
      threads: any.threads,
      arguments: [...given, o, lse, parts, partLse, ...cut, i32(first)],
    });
  }
  for (const x of [counts, items, entries, parts, partLse]) x.free();

  function hopperWalk(cut: PartsCut): Omit<Launch, 'arguments'> {
    const launch = hopperLaunch(shape, view, isLatent(operands), cut);
    const own = { BLOCK: tile.keys, KEY_STAGES: cut.keyStages };
    return {
      ...{ file: 'hopper-forward-blocks', entry: 'hopperForwardBlocks' },
      grid: [multiprocessors],
      ...{ ...launch, defines: { ...launch.defines, ...lists, ...own } },
    };
  }
}
