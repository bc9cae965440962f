import { exitCode } from './exit';

/** A terminal and a parent process may both pass on one Ctrl-C. */
const SAME_PRESS_MS = 50;

/**
 * Runs work that Ctrl-C stops: the first aborts the signal, so that what was
 * done is kept, the second ends the program at once.
 */
export async function interruptible<T>(
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  let first: number | undefined;
  const onInterrupt = () => {
    const now = performance.now();
    if (first !== undefined && now - first > SAME_PRESS_MS) {
      process.exit(exitCode.interrupted);
    }
    first ??= now;
    controller.abort();
  };
  process.on('SIGINT', onInterrupt);
  try {
    return await work(controller.signal);
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}
