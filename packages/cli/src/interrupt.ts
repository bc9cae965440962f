import { ExitError, exitCode } from './exit';

/** A terminal and a parent process may both pass on one Ctrl-C. */
const SAME_PRESS_MS = 50;

/**
 * Runs work that Ctrl-C stops: the first aborts the signal, so that what was
 * done is kept, the second ends the program at once.
 * @throws ExitError where the work throws the signal's reason.
 */
export async function interruptible<T>(
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const { signal } = controller;
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
    return await work(signal);
  } catch (error) {
    if (!signal.aborted || error !== signal.reason) throw error;
    throw new ExitError(exitCode.interrupted, 'stopped');
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}
