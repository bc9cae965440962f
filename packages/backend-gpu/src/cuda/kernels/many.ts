import type { Tensor } from '@asa/core';

/** One of several tensors that a launch goes through. */
interface Part<Call> {
  readonly call: Call;
  /** Its first block of threads. */
  readonly start: number;
}

/** What one launch does. */
export interface ManyLaunch<Call, Kind> {
  /** What its calls have in common. */
  readonly kind: Kind;
  readonly parts: readonly Part<Call>[];
  /** Blocks of threads. */
  readonly blocks: number;
}

/**
 * Cuts a list of calls into launches, in order: neighbours of one kind go
 * together, as many as a launch's arguments have room for.
 * @param kindOf names what all calls of a launch must have in common.
 * @param tensor what is shared out, so many elements a block of threads.
 */
export function launchesOf<Call, Kind>(
  calls: readonly Call[],
  kindOf: (call: Call) => Kind,
  tensor: (call: Call) => Tensor,
  { elements, most }: { readonly elements: number; readonly most: number },
): ManyLaunch<Call, Kind>[] {
  const launches: { kind: Kind; parts: Part<Call>[]; blocks: number }[] = [];
  for (const call of calls) {
    const { size } = tensor(call);
    if (size === 0) continue;
    const kind = kindOf(call);
    let last = launches.at(-1);
    if (!last || last.kind !== kind || last.parts.length === most) {
      last = { kind, parts: [], blocks: 0 };
      launches.push(last);
    }
    last.parts.push({ call, start: last.blocks });
    last.blocks += Math.ceil(size / elements);
  }
  return launches;
}

/** The arguments of `most` parts, of which the last ones may not be there. */
export function padded<T>(
  parts: readonly (readonly T[])[],
  none: readonly T[],
  most: number,
): T[] {
  return Array.from({ length: most }, (_, i) => parts[i] ?? none).flat();
}
