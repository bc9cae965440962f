import type { FloatType } from '../dtype';
import type { SelectBlocksAttributes } from '../ops/select-blocks';
import { leaderCount } from '../sequences';
import type { OperatorCase, RunReference } from './arbitraries/case';
import { type Comparison, fine, wrong } from './comparison';
import type { ValuesByName } from './run-operator';
import { relativeTolerance } from './tolerances';
import type { Values } from './values';

/**
 * Checks block lists against the rule itself, not against another list: the
 * forced blocks, then the best by (importance descending, index ascending).
 * Importance comes from the reference in double, so lists may differ where two
 * scores are closer than f32 can tell; equal scores of 0, and equal scores of
 * cases whose arithmetic is exact, leave no choice. Source: maths.md §3.
 */
export async function compareLists(
  {
    attributes,
    exactTies = false,
  }: Pick<OperatorCase, 'attributes' | 'exactTies'>,
  inputs: ValuesByName,
  got: Values,
  dtype: FloatType,
  reference: RunReference,
): Promise<Comparison> {
  const given = attributes as SelectBlocksAttributes;
  const { previous, ...ranking } = inputs;
  const { importance } = await reference('blockImportance', ranking, given);
  if (!importance) return wrong('internal: no importance');
  const error = relativeTolerance(
    'blockImportance',
    dtype,
    { shape: [], dtype: 'f32' },
    { inputs, attributes },
  );
  const rule = new SelectionRule(given, error, exactTies);
  const { groups, count, sharing, sequences } = given;
  const blocks = importance.shape[2] ?? 0;
  for (const [s, sequence] of sequences.list.entries()) {
    const { leaderStart, queryCount, keyCount } = sequence;
    const first = keyCount - queryCount;
    const leaders = leaderCount(first, queryCount, sharing);
    for (let row = 0; row < leaders * groups; row++) {
      const leader =
        (Math.floor(first / sharing) + Math.floor(row / groups)) * sharing;
      const flat = leaderStart * groups + row;
      const list = got.data.slice(flat * count, (flat + 1) * count);
      const fault =
        leader < first
          ? sameList(list, previous, s * groups + (row % groups), count)
          : rule.fault(
              [...list],
              Math.floor(leader / given.blockSize),
              importance.data.slice(flat * blocks, (flat + 1) * blocks),
            );
      if (fault) {
        return wrong(
          `list of sequence ${s}, position ${leader}, group ${row % groups} is [${list.join(', ')}], ${fault}`,
        );
      }
    }
  }
  return fine;
}

function sameList(
  list: ArrayLike<number>,
  previous: Values | undefined,
  row: number,
  count: number,
): string | undefined {
  const want = [
    ...(previous?.data.slice(row * count, (row + 1) * count) ?? []),
  ];
  const isSame = want.every((block, i) => block === list[i]);
  return isSame ? undefined : `must be the earlier one, [${want.join(', ')}]`;
}

class SelectionRule {
  constructor(
    private readonly attributes: SelectBlocksAttributes,
    private readonly error: number,
    private readonly exactTies: boolean,
  ) {}

  /** What is wrong with a list for a leader in block `own`, if anything. */
  fault(
    list: readonly number[],
    own: number,
    scores: ArrayLike<number>,
  ): string | undefined {
    const { count } = this.attributes;
    const size = Math.min(count, own + 1);
    const chosen = list.slice(0, size);
    if (list.slice(size).some((block) => block !== -1)) {
      return `must hold ${size} blocks and -1 behind`;
    }
    const isAscending = chosen.every(
      (block, i) => block > (chosen[i - 1] ?? -1) && block <= own,
    );
    if (!isAscending) return `must ascend from 0 to at most ${own}`;
    const forced = this.forced(own);
    const missing = forced.find((block) => !chosen.includes(block));
    if (missing !== undefined) return `must hold the forced block ${missing}`;
    return this.betterBlock(chosen, forced, own, scores);
  }

  private forced(own: number): number[] {
    const { initial, local } = this.attributes;
    return range(own + 1).filter(
      (block) => block < initial || block > own - local,
    );
  }

  private betterBlock(
    chosen: readonly number[],
    forced: readonly number[],
    own: number,
    scores: ArrayLike<number>,
  ): string | undefined {
    const free = chosen.filter((block) => !forced.includes(block));
    const left = range(own + 1).filter((block) => !chosen.includes(block));
    for (const a of left) {
      for (const b of free) {
        const [p, q] = [scores[a] ?? 0, scores[b] ?? 0];
        const isTie = p === q && (p === 0 || this.exactTies);
        if (isTie ? a < b : p - q > this.error * (p + q)) {
          return `must hold ${a} (importance ${p}) before ${b} (${q})`;
        }
      }
    }
    return undefined;
  }
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}
