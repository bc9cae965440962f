import fc from 'fast-check';
import {
  type Blocking,
  blockCount,
  leaderCount,
  Sequences,
} from '../../sequences';

/** Extents around blocks of 4, 8 and 16, and primes; shrinks to 1. */
export const extent: fc.Arbitrary<number> = fc.constantFrom(
  1,
  2,
  3,
  4,
  5,
  7,
  8,
  9,
  13,
  16,
  17,
);

/** Rows: as extents, with none and with more than a tile of 32 or 64. */
export const rowCount: fc.Arbitrary<number> = fc.constantFrom(
  ...[1, 2, 3, 5, 7, 8, 9, 0, 15, 16, 17, 31, 33, 64, 67],
);

/** Channels: odd ones too, since vector loads must end somewhere. */
export const width: fc.Arbitrary<number> = fc.constantFrom(
  1,
  2,
  3,
  4,
  5,
  8,
  12,
  16,
  17,
  20,
);

/** Channels of rotary pairs. */
export const evenWidth: fc.Arbitrary<number> = fc.constantFrom(
  2,
  4,
  6,
  8,
  16,
  18,
);

/** Draws data; sizes are what shrinks. */
export const dataSeed: fc.Arbitrary<number> = fc.noShrink(
  fc.integer({ min: 0, max: 0x7fffffff }),
);

/** Query heads and the groups that share keys. */
export const heads = fc
  .record({
    groups: fc.constantFrom(1, 2, 3),
    perGroup: fc.constantFrom(1, 2, 3, 4),
  })
  .map(({ groups, perGroup }) => ({ groups, heads: groups * perGroup }));

/** `d`, `l`, `l'` and `r` that obey `d | l`, `d | l'` and `r | l'`. */
export const blocking = fc
  .record({
    stride: fc.constantFrom(1, 2, 3, 4, 8, 16),
    lengths: fc.constantFrom(1, 2, 3, 4),
    sharing: fc.constantFrom(1, 2, 3, 4),
    blocks: fc.constantFrom(1, 2, 3),
  })
  .map(({ stride, lengths, sharing, blocks }) => ({
    stride,
    length: stride * lengths,
    sharing,
    blockSize: leastCommonMultiple(stride, sharing) * blocks,
  }));

interface Part {
  readonly queries: number;
  readonly past: number;
  /** Rows that belong to nobody, in front of the sequence on every axis. */
  readonly gap: number;
}

/** Shared by the key counts that matter to blocks of these sizes. */
const tokens = fc.oneof(
  { weight: 8, arbitrary: rowCount },
  { weight: 1, arbitrary: fc.constantFrom(97, 128, 129, 191) },
);

const long: Part[] = [{ queries: 1031, past: 0, gap: 0 }];

/**
 * Batches of equal sequences, packed documents, sequences with a past, gaps
 * between them, empty ones, none at all, and one of more than 1,000 steps.
 * @param self every query is a key: no past.
 * @param isLong whether there is that one.
 */
export function parts(
  self: boolean,
  isLong = true,
): fc.Arbitrary<readonly Part[]> {
  const past = self ? fc.constant(0) : fc.oneof(fc.constant(0), tokens);
  const gap = fc.constantFrom(0, 0, 0, 1, 3);
  const part = fc.record({ queries: tokens, past, gap });
  const decode = fc.record({ queries: fc.constant(1), past, gap });
  return fc.oneof(
    { withCrossShrink: true },
    { weight: 12, arbitrary: fc.array(part, { maxLength: 3 }) },
    { weight: 4, arbitrary: fc.array(decode, { maxLength: 4 }) },
    {
      weight: 4,
      arbitrary: fc
        .tuple(part, fc.constantFrom(2, 3))
        .map(([one, batch]) => Array.from({ length: batch }, () => one)),
    },
    {
      weight: self || !isLong ? 0 : 1,
      arbitrary: fc.constant(decodeLong),
    },
    { weight: isLong ? 1 : 0, arbitrary: fc.constant(long) },
  );
}

const decodeLong: Part[] = [{ queries: 2, past: 1031, gap: 1 }];

/** Lays parts one behind the other on every axis, with their gaps. */
export function layOutParts(
  parts: readonly Part[],
  blocks: Blocking = { length: 1, stride: 1, sharing: 1 },
): Sequences {
  let [queryStart, keyStart, blockStart, leaderStart] = [0, 0, 0, 0];
  return new Sequences(
    parts.map(({ queries, past, gap }) => {
      const keys = past + queries;
      const sequence = {
        queryStart: queryStart + gap,
        queryCount: queries,
        keyStart: keyStart + gap,
        keyCount: keys,
        blockStart: blockStart + gap,
        leaderStart: leaderStart + gap,
      };
      queryStart = sequence.queryStart + queries;
      keyStart = sequence.keyStart + keys;
      blockStart = sequence.blockStart + blockCount(keys, blocks);
      leaderStart =
        sequence.leaderStart + leaderCount(past, queries, blocks.sharing);
      return sequence;
    }),
  );
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
