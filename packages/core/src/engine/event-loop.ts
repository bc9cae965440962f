/** Node's; other hosts have timers only. */
const { setImmediate } = globalThis as {
  readonly setImmediate?: (run: () => void) => unknown;
};

/**
 * Lets timers, signals and other sessions run: a backend that computes on this
 * thread would otherwise hold them up until the last token.
 */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    if (setImmediate) setImmediate(resolve);
    else setTimeout(resolve);
  });
}
