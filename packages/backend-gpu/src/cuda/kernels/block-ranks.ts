/** Importance of blocks: what lists are chosen by. */
import {
  blockCount,
  type RankingAttributes,
  type RankingOperands,
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
import { type KernelContext, scratchBytes } from './context';
import { flashLaunch, importanceTile } from './flash';
import { hopperImportanceCut, hopperLaunch, type RankingCut } from './hopper';

/** As in the kernel. */
const THREADS = 128;
const KEYS = 64;
const HEADS = 16;
/** Blocks of threads that a multiprocessor should have. */
const BLOCKS = 4;

/** Rows of importance of leaders `first .. first + count` of each sequence. */
export interface RankedRows {
  readonly places: number;
  readonly first: number;
  readonly count: number;
  /** Else rows are numbered as lists are. */
  readonly isPart: boolean;
}

export type Ranks = RankedRows & { readonly importance: Tensor };

/** The kernels' structure `Ranks`. */
export const ranksOf = (
  groups: number,
  ranks: RankedRows,
): readonly Argument[] =>
  [
    ...[groups, ranks.places, ranks.first, ranks.count],
    ranks.isPart ? 1 : 0,
  ].map(i32);

/** Leaders at a time, in whole tiles, where each needs so much scratch memory. */
export function stepOf(
  leaders: number,
  bytes: number,
  facts: DeviceFacts,
): number {
  const step = Math.floor(scratchBytes(facts) / bytes);
  return Math.min(leaders, step < 8 ? Math.max(1, step) : step - (step % 8));
}

export function rank(
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
export const roomOf = (attributes: RankingAttributes) =>
  Math.max(1, blockCount(attributes.sequences.keyRoom, attributes));

/** Probabilities of `count` leaders, after `done` others. */
interface RankingPart {
  readonly probabilities: Tensor;
  readonly count: number;
  readonly done: number;
}

/** The kernels' structures `Ranking` and `Ranks`. */
export function rankingOf(
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
export function weigh(
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
