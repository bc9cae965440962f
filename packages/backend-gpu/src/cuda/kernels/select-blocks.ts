import type {
  RankingAttributes,
  RankingOperands,
  SelectBlocksAttributes,
  Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Argument, i32 } from '../launch';
import { shapeOf, total } from './attention-tile';
import {
  type RankedRows,
  type Ranks,
  rank,
  rankingOf,
  ranksOf,
  roomOf,
  stepOf,
  weigh,
} from './block-ranks';
import {
  elementwise,
  extent,
  fillBits,
  type KernelContext,
  type Kernels,
  scratchBytes,
} from './context';
import { importanceTile } from './flash';

/**
 * Lists for each multiprocessor, up to which each has a block of threads, in
 * place of a warp; none with 0.
 */
const FEW = 2;
const FEW_THREADS = 512;
/** Ranks that a thread of those keeps, and probabilities that it asks for. */
const FEW_HELD = 32;
const FEW_LOADS = 256;

export const selectBlocksKernels = (
  context: KernelContext,
): Kernels<'blockImportance' | 'selectBlocks'> => ({
  blockImportance(inputs, { importance }, attributes) {
    context.clear(importance);
    const ranks = {
      importance,
      places: extent(importance, 2),
      first: 0,
      count: mostLeaders(attributes),
      isPart: false,
    };
    rank(context, inputs, attributes, ranks);
  },

  /** F, then the best others by (P descending, j ascending); ascending */
  selectBlocks({ previous, ...inputs }, { indices }, attributes) {
    const { sequences, groups, blockSize } = attributes;
    const leaders = mostLeaders(attributes);
    const room = Math.ceil(sequences.keyRoom / blockSize);
    if (hasOtherRows(attributes)) fillBits(context, indices, -1);
    const lists = { previous, indices };
    const all = { places: room, first: 0, count: leaders, isPart: true };
    if (isFew(leaders, attributes, context.facts)) {
      chooseFew(context, inputs, lists, attributes, all);
      return;
    }
    const perLeader = groups * room * sequences.count;
    const step = stepOf(leaders, 4 * perLeader, context.facts);
    for (let first = 0; first < leaders; first += step) {
      const count = Math.min(step, leaders - first);
      const importance = context.scratch(count * perLeader, 'f32');
      const ranks = { ...all, importance, first, count };
      rank(context, inputs, attributes, ranks);
      choose(context, lists, attributes, ranks);
      importance.free();
    }
  },
});

/** Leaders of the sequence that has most. */
function mostLeaders({ sequences, sharing }: RankingAttributes): number {
  return Math.max(0, ...sequences.leaderCounts(sharing));
}

/** What lists are written to, and those of leaders before the queries. */
interface Lists {
  readonly previous: Tensor | undefined;
  readonly indices: Tensor;
}

/** Rows of lists that belong to no sequence. */
function hasOtherRows({ sequences, sharing }: RankingAttributes): boolean {
  const leaders = total(sequences.leaderCounts(sharing));
  return leaders < sequences.leaderRows(sharing);
}

/** Whether each list has a block of threads, and all have their ranks at once. */
function isFew(
  leaders: number,
  attributes: RankingAttributes,
  facts: DeviceFacts,
): boolean {
  const lists = leaders * attributes.groups * attributes.sequences.count;
  const bytes = 4 * lists * roomOf(attributes);
  const isSome = lists > 0 && lists <= FEW * facts.multiprocessors;
  return isSome && bytes <= scratchBytes(facts);
}

/** A block of threads a list, which makes importance of probabilities too. */
function chooseFew(
  context: KernelContext,
  inputs: RankingOperands,
  lists: Lists,
  attributes: SelectBlocksAttributes,
  ranks: RankedRows,
): void {
  const { sequences, groups, length, stride, blockSize } = attributes;
  const shape = shapeOf({ ...inputs, v: inputs.k });
  const { count, places } = ranks;
  const all = count * groups * sequences.count;
  if (importanceTile(shape, attributes, count, context.facts)) {
    const importance = context.scratch(all * places, 'f32');
    rank(context, inputs, attributes, { ...ranks, importance });
    // As of blocks of their own size. Of the last one, which is forced, no rank
    // is asked for.
    const own = { length: blockSize, stride: blockSize, pitch: places };
    launchFew(context, importance, own, lists, attributes, ranks);
    importance.free();
    return;
  }
  const pitch = roomOf(attributes);
  const probabilities = context.scratch(all * pitch, 'f32');
  const part = { probabilities, count, done: 0 };
  const ranking = rankingOf(inputs, attributes, ranks, part);
  weigh(context, inputs, attributes, ranking, count);
  const pooled = { length, stride, pitch };
  launchFew(context, probabilities, pooled, lists, attributes, ranks);
  probabilities.free();
}

/** What ranks are made of: rows of `pitch` blocks of so many tokens. */
interface RankedBlocks {
  readonly pitch: number;
  readonly length: number;
  readonly stride: number;
}

function launchFew(
  context: KernelContext,
  ranked: Tensor,
  { pitch, length, stride }: RankedBlocks,
  lists: Lists,
  attributes: SelectBlocksAttributes,
  ranks: RankedRows,
): void {
  const { sequences, groups, blockSize } = attributes;
  const strides = {
    BLOCK_STRIDES: blockSize / stride,
    LENGTH_STRIDES: length / stride,
  };
  const terms = strides.BLOCK_STRIDES + strides.LENGTH_STRIDES - 1;
  const each = powerOfTwo(ranks.places / FEW_THREADS);
  const isHeld = each <= FEW_HELD && each * terms <= FEW_LOADS;
  context.run({
    file: 'choose-few',
    entry: 'chooseFew',
    defines: { HELD: isHeld ? each : 0, ...strides },
    grid: [ranks.count * groups, 1, sequences.count],
    threads: [FEW_THREADS],
    arguments: [
      ...choiceOf(attributes, ranks, lists),
      ...[ranked, lists.previous, lists.indices],
      ...[pitch, length, stride].map(i32),
    ],
  });
}

/** A warp a list. */
function choose(
  context: KernelContext,
  lists: Lists,
  attributes: SelectBlocksAttributes,
  ranks: Ranks,
): void {
  const { sequences, groups } = attributes;
  const { grid, threads } = elementwise(32 * ranks.count * groups);
  const perLane = powerOfTwo(ranks.places / 32);
  context.run({
    file: 'choose-blocks',
    entry: 'selectBlocks',
    // More than 128 blocks a lane do not fit its registers.
    defines: { HELD: perLane > 128 ? 0 : perLane },
    grid: [grid[0], 1, sequences.count],
    threads,
    arguments: [
      ...choiceOf(attributes, ranks, lists),
      ...[ranks.importance, lists.previous, lists.indices],
    ],
  });
}

/** The kernels' structures `Ranks` and `Choice`. */
function choiceOf(
  attributes: SelectBlocksAttributes,
  ranks: RankedRows,
  { indices }: Lists,
): readonly Argument[] {
  const { sequences, groups, blockSize, sharing } = attributes;
  const { count, initial, local } = attributes;
  return [
    ...ranksOf(groups, ranks),
    sequences.on(indices.backend),
    ...[blockSize, sharing, count, initial, local].map(i32),
  ];
}

/** The least power of two that is no less; 1 at least. */
const powerOfTwo = (x: number) => 2 ** Math.max(0, Math.ceil(Math.log2(x)));
