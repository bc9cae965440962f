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
    // No block.
    fillBits(context, indices, -1);
    const { sequences, groups, blockSize } = attributes;
    const places = Math.ceil(sequences.keyRoom / blockSize);
    const perLeader = groups * places * sequences.count;
    const leaders = mostLeaders(attributes);
    const step = stepOf(leaders, 4 * perLeader, context.facts);
    for (let first = 0; first < leaders; first += step) {
      const count = Math.min(step, leaders - first);
      const importance = context.scratch(count * perLeader, 'f32');
      const ranks = { importance, places, first, count, isPart: true };
      rank(context, inputs, attributes, ranks);
      choose(context, previous, indices, attributes, ranks);
      importance.free();
    }
  },
});

/** Rows of importance of leaders `first .. first + count` of each sequence. */
interface Ranks {
  readonly importance: Tensor;
  readonly places: number;
  readonly first: number;
  readonly count: number;
  /** Else rows are numbered as lists are. */
  readonly isPart: boolean;
}

/** The kernels' structure of that name. */
const ranksOf = (groups: number, ranks: Ranks): readonly Argument[] =>
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
  const shape = shapeOf({ ...inputs, v: inputs.k });
  const room = Math.max(1, blockCount(sequences.keyRoom, attributes));
  const perLeader = room * groups * sequences.count;
  const step = stepOf(ranks.count, 4 * perLeader, context.facts);
  for (let done = 0; done < ranks.count; done += step) {
    const count = Math.min(step, ranks.count - done);
    const probabilities = context.scratch(count * perLeader, 'f32');
    const ranking = [
      inputs.q,
      inputs.k,
      inputs.qRope,
      inputs.kRope,
      inputs.lse,
      sequences.on(inputs.q.backend),
      probabilities,
      ...numbers(shape, attributes),
      ...[room, count, done].map(i32),
      ...ranksOf(groups, ranks),
    ];
    const launch = (splits: number) => ({
      file: 'select-blocks' as const,
      defines: { T: shape.dtype },
      grid: [count * splits, groups, sequences.count] as const,
      threads: [THREADS] as const,
    });
    const tiles = Math.ceil(room / KEYS);
    const lists = count * groups * sequences.count;
    const splits = Math.min(tiles, splitsOf(lists, context.facts));
    context.run({
      ...launch(splits),
      entry: 'blockProbabilities',
      sharedBytes: scoreBytes(shape),
      arguments: [...ranking, i32(splits)],
    });
    const parts = Math.ceil(sequences.keyRoom / blockSize / THREADS);
    context.run({
      ...launch(parts),
      entry: 'blockImportance',
      arguments: [...ranking, i32(parts), ranks.importance],
    });
    probabilities.free();
  }
}

/** Blocks of threads that share out the keys of each list, to fill the card. */
function splitsOf(lists: number, { multiprocessors }: DeviceFacts): number {
  return Math.ceil((BLOCKS * multiprocessors) / lists);
}

/** A warp a list. */
function choose(
  context: KernelContext,
  previous: Tensor | undefined,
  indices: Tensor,
  attributes: SelectBlocksAttributes,
  ranks: Ranks,
): void {
  const { sequences, groups, blockSize, sharing } = attributes;
  const { count, initial, local } = attributes;
  const { grid, threads } = elementwise(32 * ranks.count * groups);
  const perLane = 2 ** Math.ceil(Math.log2(ranks.places / 32));
  context.run({
    file: 'choose-blocks',
    entry: 'selectBlocks',
    // More than 128 blocks a lane do not fit its registers.
    defines: { HELD: perLane > 128 ? 0 : Math.max(1, perLane) },
    grid: [grid[0], 1, sequences.count],
    threads,
    arguments: [
      ...ranksOf(groups, ranks),
      sequences.on(indices.backend),
      ...[blockSize, sharing, count, initial, local].map(i32),
      ranks.importance,
      previous,
      indices,
    ],
  });
}

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
