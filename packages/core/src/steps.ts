/** Work that stops in between, so that other work can be done there. */
export type Steps<T> = Generator<void, T>;

/** Does all of it. */
export function toEnd<T>(steps: Steps<T>): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/**
 * A step of each by turns; `ended` gets what one ends with. A failure ends all of
 * them.
 */
export function byTurns<T>(
  all: readonly Steps<T>[],
  ended: (index: number, result: T) => void,
): void {
  const open = new Map(all.entries());
  try {
    while (open.size > 0) {
      for (const [index, steps] of open) {
        const { done, value } = steps.next();
        if (!done) continue;
        open.delete(index);
        ended(index, value);
      }
    }
  } finally {
    for (const steps of open.values()) steps.return(undefined as never);
  }
}
