import {
  blockCount,
  leaderCount,
  type RankingAttributes,
  type RankingOperands,
  type SelectBlocksAttributes,
  type Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Argument, f32, i32 } from '../launch';
import {
  type AttentionShape,
  type CallView,
  call,
  greatestCommonDivisor,
  shapeOf,
  total,
} from './attention-tile';
import {
  elementwise,
  extent,
  fillBits,
  type KernelContext,
  type Kernels,
  scratchBytes,
} from './context';
import { flashLaunch, importanceTile } from './flash';
import { hopperImportanceCut, hopperLaunch, type RankingCut } from './hopper';

/** As in the kernel. */
const THREADS = 128;
const KEYS = 64;
const HEADS = 16;
/** Blocks of threads that a multiprocessor should have. */
const BLOCKS = 4;
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

/** What lists are written to, and those of leaders before the queries. */
interface Lists {
  readonly previous: Tensor | undefined;
  readonly indices: Tensor;
}

/** Rows of lists that belong to no sequence. */
function hasOtherRows({ sequences, sharing }: RankingAttributes): boolean {
  const leaders = sequences.list.map(({ keyCount, queryCount }) =>
    leaderCount(keyCount - queryCount, queryCount, sharing),
  );
  return total(leaders) < sequences.leaderRows(sharing);
}

/** Rows of importance of leaders `first .. first + count` of each sequence. */
interface RankedRows {
  readonly places: number;
  readonly first: number;
  readonly count: number;
  /** Else rows are numbered as lists are. */
  readonly isPart: boolean;
}

type Ranks = RankedRows & { readonly importance: Tensor };

/** The kernels' structure `Ranks`. */
const ranksOf = (groups: number, ranks: RankedRows): readonly Argument[] =>
  [
    ...[groups, ranks.places, ranks.first, ranks.count],
    ranks.isPart ? 1 : 0,
  ].map(i32);

/** Leaders of the sequence that has most. */
function mostLeaders({ sequences, sharing }: RankingAttributes): number {
  return Math.max(
    0,
    ...sequences.list.map(({ keyCount, queryCount }) =>
      leaderCount(keyCount - queryCount, queryCount, sharing),
    ),
  );
}

/** Leaders at a time, in whole tiles, where each needs so much scratch memory. */
function stepOf(leaders: number, bytes: number, facts: DeviceFacts): number {
  const step = Math.floor(scratchBytes(facts) / bytes);
  return Math.min(leaders, step < 8 ? Math.max(1, step) : step - (step % 8));
}

function rank(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  ranks: Ranks,
): void {
  const shape = shapeOf({ ...inputs, v: inputs.k });
  const tile = importanceTile(shape, attributes, ranks.count, context.facts);
  if (!tile) {
    rankAnyWidth(context, inputs, attributes, ranks);
    return;
  }
  const { sequences, groups } = attributes;
  const view = rankingView(shape, attributes);
  const scored = { ...shape, valueWidth: 16 };
  const inputsOf = () => [
    ...call({ ...inputs, v: inputs.k }, view),
    inputs.lse,
    ranks.importance,
    ...ranksOf(groups, ranks),
  ];
  const defined = {
    BLOCK: 1,
    BLOCK_STRIDES: attributes.blockSize / attributes.stride,
    LENGTH_STRIDES: attributes.length / attributes.stride,
  };
  const hopper = hopperImportanceCut(scored, tile, context.facts);
  const grid = hopper && leaderGrid(hopper, attributes, ranks, context.facts);
  if (hopper && grid) {
    const { defines, ...launch } = hopperLaunch(scored, view, true, hopper);
    context.run({
      file: 'hopper-importance',
      entry: 'hopperImportance',
      ...launch,
      defines: {
        ...{ ...defines, ...defined },
        ...{ LEADER_ROWS: hopper.leaderRows, QUERY_STAGES: hopper.queryStages },
      },
      grid: [context.facts.multiprocessors],
      arguments: [...inputsOf(), ...grid],
    });
    return;
  }
  const { defines, ...launch } = flashLaunch(scored, view, true, tile);
  context.run({
    file: 'flash-importance',
    entry: 'flashImportance',
    ...launch,
    defines: { ...defines, ...defined, HEAD_TILES: tile.headTiles },
    grid: [Math.ceil(ranks.count / tile.leaders), groups, sequences.count],
    arguments: inputsOf(),
  });
}

/** Compressed attention's view, of a group's heads at a time. */
function rankingView(
  { heads }: AttentionShape,
  attributes: RankingAttributes,
): CallView & { unitHeads: number } {
  const { sequences, groups, scale, length, stride } = attributes;
  const { blockSize, sharing } = attributes;
  return {
    ...({ kind: 'COMPRESSED', sequences, scale, length, stride } as const),
    ...{ blockSize, sharing, unitHeads: heads / groups },
  };
}

/**
 * Tiles in all, and of a sequence's group; none where some multiprocessors
 * would have nothing to do.
 */
function leaderGrid(
  { rows, leaderRows }: RankingCut,
  { groups, sequences }: RankingAttributes,
  { count }: Ranks,
  { multiprocessors }: DeviceFacts,
): readonly Argument[] | undefined {
  const tiles = Math.ceil(count / (rows / leaderRows));
  const total = tiles * groups * sequences.count;
  if (total < multiprocessors) return undefined;
  return [total, tiles, sequences.count].map(i32);
}

function rankAnyWidth(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  ranks: Ranks,
): void {
  const { sequences, groups, blockSize } = attributes;
  const perLeader = roomOf(attributes) * groups * sequences.count;
  const step = stepOf(ranks.count, 4 * perLeader, context.facts);
  for (let done = 0; done < ranks.count; done += step) {
    const count = Math.min(step, ranks.count - done);
    const probabilities = context.scratch(count * perLeader, 'f32');
    const part = { probabilities, count, done };
    const ranking = rankingOf(inputs, attributes, ranks, part);
    weigh(context, inputs, attributes, ranking, count);
    const parts = Math.ceil(sequences.keyRoom / blockSize / THREADS);
    context.run({
      file: 'select-blocks',
      entry: 'blockImportance',
      defines: { T: inputs.q.dtype },
      grid: [count * parts, groups, sequences.count],
      threads: [THREADS],
      arguments: [...ranking, i32(parts), ranks.importance],
    });
    probabilities.free();
  }
}

/** Compressed blocks that a row of probabilities has room for. */
const roomOf = (attributes: RankingAttributes) =>
  Math.max(1, blockCount(attributes.sequences.keyRoom, attributes));

/** Probabilities of `count` leaders, after `done` others. */
interface RankingPart {
  readonly probabilities: Tensor;
  readonly count: number;
  readonly done: number;
}

/** The kernels' structures `Ranking` and `Ranks`. */
function rankingOf(
  inputs: RankingOperands,
  attributes: RankingAttributes,
  ranks: RankedRows,
  { probabilities, count, done }: RankingPart,
): readonly Argument[] {
  const { sequences, groups } = attributes;
  return [
    inputs.q,
    inputs.k,
    inputs.qRope,
    inputs.kRope,
    inputs.lse,
    sequences.on(inputs.q.backend),
    probabilities,
    ...numbers(shapeOf({ ...inputs, v: inputs.k }), attributes),
    ...[roomOf(attributes), count, done].map(i32),
    ...ranksOf(groups, ranks),
  ];
}

/** The probabilities of compressed blocks, summed over each group's heads. */
function weigh(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  ranking: readonly Argument[],
  leaders: number,
): void {
  const { sequences, groups } = attributes;
  const tiles = Math.ceil(roomOf(attributes) / KEYS);
  const lists = leaders * groups * sequences.count;
  const splits = Math.min(tiles, splitsOf(lists, context.facts));
  context.run({
    file: 'select-blocks',
    entry: 'blockProbabilities',
    defines: { T: inputs.q.dtype },
    grid: [leaders * splits, groups, sequences.count],
    threads: [THREADS],
    sharedBytes: scoreBytes(shapeOf({ ...inputs, v: inputs.k })),
    arguments: [...ranking, i32(splits)],
  });
}

/** Blocks of threads that share out the keys of each list, to fill the card. */
function splitsOf(lists: number, { multiprocessors }: DeviceFacts): number {
  return Math.ceil((BLOCKS * multiprocessors) / lists);
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

/** Fields of the kernel's structure, from the heads to the sharing. */
function numbers(
  { heads, keyHeads, width, ropeWidth, dtype }: AttentionShape,
  attributes: RankingAttributes,
): readonly Argument[] {
  const { groups, scale, length, stride, blockSize, sharing } = attributes;
  const unitHeads = greatestCommonDivisor(heads / groups, heads / keyHeads);
  const step = dtype === 'f32' ? 4 : 8;
  const isAligned = width % step === 0 && ropeWidth % step === 0;
  return [
    ...[heads, keyHeads, unitHeads].map(i32),
    ...[width, ropeWidth, isAligned ? 1 : 0].map(i32),
    f32(scale),
    ...[length, stride, blockSize, sharing].map(i32),
  ];
}

/** Shared memory of the tiles of queries and keys. */
function scoreBytes({ width, ropeWidth, dtype }: AttentionShape): number {
  const size = dtype === 'f32' ? 4 : 2;
  const pitch = Math.ceil((width + ropeWidth) / 16) * 16 + 16 / size;
  return (HEADS + KEYS) * pitch * size;
}

/** Why keys of that width cannot be ranked. */
export function reasonAgainstRanking(
  shape: AttentionShape,
  sharedBytes: number,
): string | undefined {
  const bytes = scoreBytes(shape) + 4096;
  return bytes > sharedBytes
    ? `keys of width ${shape.width + shape.ropeWidth} need ${bytes} bytes of shared memory, and the device has ${sharedBytes}`
    : undefined;
}
