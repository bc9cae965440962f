/**
 * Rows whose walk over keys several blocks of threads share out: each has their
 * results as parts, in f32, which a second kernel joins.
 */
import type { AttentionResults } from '@asa/core';
import { i32 } from '../launch';
import { extent, type KernelContext, typed } from './context';

/** Of a row at most. */
export const MOST_PARTS = 512;
/**
 * Keys of a part where there is a choice: a longer walk keeps the card waiting
 * where sequences differ in length.
 */
export const LONG_WALK = 4096;

type Rows = Pick<AttentionResults, 'o' | 'lse'>;

/** `[Nq, H, parts, Dv]` and `[Nq, H, parts]`, in f32. */
export function partsOf(
  context: KernelContext,
  { o, lse }: Rows,
  parts: number,
): Rows {
  return {
    o: context.scratch(parts * o.size, 'f32'),
    lse: context.scratch(parts * lse.size, 'f32'),
  };
}

/** Joins them; they are freed. */
export function joinParts(
  context: KernelContext,
  parts: Rows,
  { o, lse }: Rows,
): void {
  const width = extent(o, -1);
  context.run({
    file: 'attention-parts',
    entry: 'joinParts',
    defines: typed(o),
    grid: [lse.size, Math.ceil(width / 32)],
    threads: [256],
    startsEarly: true,
    arguments: [
      ...[parts.o, parts.lse, o, lse],
      ...[parts.lse.size / lse.size, width].map(i32),
    ],
  });
  parts.o.free();
  parts.lse.free();
}
