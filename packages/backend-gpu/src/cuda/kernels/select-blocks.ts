import {
  blockCount,
  leaderCount,
  type RankingAttributes,
  type RankingOperands,
} from '@asa/core';
import { type Argument, f32, i32, type Launch } from '../launch';
import {
  type AttentionShape,
  greatestCommonDivisor,
  shapeOf,
} from './attention-tile';
import { extent, fillBits, type KernelContext, type Kernels } from './context';

/** As in the kernel. */
const THREADS = 128;
const KEYS = 64;
const HEADS = 16;
/** Bytes of probabilities and importances that shared memory holds. */
const MOST_SHARED = 2 ** 15;
/** Bytes of scratch memory at a time where it does not. */
const SCRATCH_BYTES = 2 ** 26;

export const selectBlocksKernels = (
  context: KernelContext,
): Kernels<'blockImportance' | 'selectBlocks'> => ({
  blockImportance(inputs, { importance }, attributes) {
    context.clear(importance);
    rank(context, inputs, attributes, 'blockImportance', [
      importance,
      i32(extent(importance, 2)),
    ]);
  },

  /** F, then the best others by (P descending, j ascending); ascending */
  selectBlocks({ previous, ...inputs }, { indices }, attributes) {
    const { count, initial, local } = attributes;
    // No block.
    fillBits(context, indices, -1);
    rank(context, inputs, attributes, 'selectBlocks', [
      previous,
      indices,
      ...[count, initial, local].map(i32),
    ]);
  },
});

/** A block of threads a leader and group; behind `Ranking`, `rest`. */
function rank(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  entry: string,
  rest: readonly Argument[],
): void {
  const { sequences, groups, sharing, blockSize } = attributes;
  const shape = shapeOf({ ...inputs, v: inputs.k });
  const leaders = Math.max(
    0,
    ...sequences.list.map(({ keyCount, queryCount }) =>
      leaderCount(keyCount - queryCount, queryCount, sharing),
    ),
  );
  const room = Math.max(1, blockCount(sequences.keyRoom, attributes));
  const places = Math.ceil(sequences.keyRoom / blockSize);
  const bytes = 4 * (room + places);
  const isShared = bytes <= MOST_SHARED;
  const perLeader = bytes * groups * sequences.count;
  const step = isShared
    ? leaders
    : Math.max(1, Math.floor(SCRATCH_BYTES / perLeader));
  for (let first = 0; first < leaders; first += step) {
    const count = Math.min(step, leaders - first);
    const scratch = isShared
      ? undefined
      : context.scratch((count * perLeader) / 4, 'f32');
    const launch: Launch = {
      file: 'select-blocks',
      entry,
      defines: { T: shape.dtype },
      grid: [count, groups, sequences.count],
      threads: [THREADS],
      sharedBytes: scoreBytes(shape) + (isShared ? bytes : 0),
      arguments: [
        inputs.q,
        inputs.k,
        inputs.qRope,
        inputs.kRope,
        inputs.lse,
        sequences.on(inputs.q.backend),
        scratch,
        ...numbers(shape, attributes),
        ...[room, places, first].map(i32),
        ...rest,
      ],
    };
    context.run(launch);
    scratch?.free();
  }
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
    ...[heads, keyHeads, unitHeads, groups].map(i32),
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
  const bytes = scoreBytes(shape) + MOST_SHARED + 4096;
  return bytes > sharedBytes
    ? `keys of width ${shape.width + shape.ropeWidth} need ${bytes} bytes of shared memory, and the device has ${sharedBytes}`
    : undefined;
}
