/** One of several calls that a launch goes through. */
interface Part<Call> {
  readonly call: Call;
  /** Its first block of threads. */
  readonly start: number;
}

/** What one launch does. */
export interface ManyLaunch<Call> {
  /** Its first call: in what a launch has once, all are like it. */
  readonly first: Call;
  readonly parts: readonly Part<Call>[];
  /** Blocks of threads. */
  readonly blocks: number;
}

/**
 * Cuts a list of calls into launches, in order: neighbours that are alike go
 * together, as many as a launch's arguments have room for.
 * @param areAlike whether two calls have in common what a launch has once.
 * @param workOf how much is shared out, `each` a block of threads; a call of
 * none is left out.
 */
export function launchesOf<Call>(
  calls: readonly Call[],
  areAlike: (a: Call, b: Call) => boolean,
  workOf: (call: Call) => number,
  { each, most }: { readonly each: number; readonly most: number },
): ManyLaunch<Call>[] {
  const launches: { first: Call; parts: Part<Call>[]; blocks: number }[] = [];
  for (const call of calls) {
    const work = workOf(call);
    if (work === 0) continue;
    let last = launches.at(-1);
    if (!last || last.parts.length === most || !areAlike(last.first, call)) {
      last = { first: call, parts: [], blocks: 0 };
      launches.push(last);
    }
    last.parts.push({ call, start: last.blocks });
    last.blocks += Math.ceil(work / each);
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
