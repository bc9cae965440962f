import type { Backend } from '../backend';
import { nextTurn } from '../engine/event-loop';
import type { Prepared } from './case';

/** Milliseconds of one call: median, quartiles and fastest of repetitions. */
export interface Timing {
  readonly ms: number;
  readonly lower: number;
  readonly upper: number;
  readonly fastest: number;
  readonly repetitions: number;
  /** Calls of one repetition, whose time was divided by them. */
  readonly calls: number;
}

export interface TimingOptions {
  /** Measuring time, in seconds; more where the repetitions take longer. */
  readonly seconds: number;
  readonly repetitions: number;
  readonly signal?: AbortSignal | undefined;
}

/** Repetitions of a call that takes longer than a second. */
const FEW = 3;

/** Share of the measuring time that goes before: idle devices clock down. */
const WARM_UP = 0.5;

/**
 * Times a call that has run twice before, and again until the device is warm:
 * the calls of a repetition are enqueued one behind the other, and the clock
 * stops when the device is idle.
 * @throws the signal's reason.
 */
export async function measure(
  backend: Backend,
  prepared: Prepared,
  { seconds, repetitions, signal }: TimingOptions,
): Promise<Timing> {
  await repeat(backend, prepared, 1);
  const warm = performance.now() + 1000 * WARM_UP * seconds;
  let once: number;
  do {
    await nextTurn();
    signal?.throwIfAborted();
    once = await repeat(backend, prepared, 1);
  } while (performance.now() < warm);
  const count = once > 1000 ? Math.min(FEW, repetitions) : repetitions;
  const share = (1000 * seconds) / repetitions;
  const calls = prepared.before
    ? 1
    : Math.min(1000, Math.max(1, Math.ceil(share / once)));
  const times: number[] = [];
  while (times.length < count) {
    await nextTurn();
    signal?.throwIfAborted();
    times.push((await repeat(backend, prepared, calls)) / calls);
  }
  return { ...spread(times), repetitions: count, calls };
}

/** Milliseconds of some calls. */
async function repeat(
  backend: Backend,
  { before, run }: Prepared,
  calls: number,
): Promise<number> {
  await before?.();
  await backend.synchronize();
  const start = performance.now();
  for (let i = 0; i < calls; i++) {
    // Waiting between calls that only enqueue would leave the device idle.
    const running = run();
    if (running) await running;
  }
  await backend.synchronize();
  return performance.now() - start;
}

function spread(
  times: readonly number[],
): Pick<Timing, 'ms' | 'lower' | 'upper' | 'fastest'> {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => {
    const place = share * (sorted.length - 1);
    const [low, high] = [Math.floor(place), Math.ceil(place)];
    const [a = 0, b = 0] = [sorted[low], sorted[high]];
    return a + (b - a) * (place - low);
  };
  return { ms: at(0.5), lower: at(0.25), upper: at(0.75), fastest: at(0) };
}
