import { z } from 'zod';

const count = z.int().nonnegative();
const rate = z.number().nonnegative();

/** Every schedule climbs from 0 to `peak` in `warmup` steps, in a line. */
const climb = { peak: z.number().positive(), warmup: count.default(0) };

export const scheduleSchema = z.discriminatedUnion('kind', [
  /** `peak` for ever. */
  z.object({ kind: z.literal('constant'), ...climb }),
  /** Half a cosine from `peak` to `floor`. Source: arXiv 1608.03983. */
  z.object({ kind: z.literal('cosine'), ...climb, floor: rate.default(0) }),
  /**
   * `peak`, then a line to `floor` in the last `decay` steps: a run can go on
   * from before the decay. Source: arXiv 2404.06395, 2405.18392.
   */
  z.object({
    kind: z.literal('warmup-stable-decay'),
    ...climb,
    decay: count,
    floor: rate.default(0),
  }),
]);

export type Schedule = z.infer<typeof scheduleSchema>;

/**
 * The rule that a schedule over `steps` steps breaks, and its field.
 * `undefined` when it breaks none.
 */
export function scheduleFlaw(
  schedule: Schedule,
  steps: number,
): { readonly field: string; readonly rule: string } | undefined {
  const { kind, peak, warmup } = schedule;
  if (kind === 'constant') return undefined;
  if (schedule.floor > peak) {
    const rule = `must be at most the peak ${peak}, got ${schedule.floor}`;
    return { field: 'floor', rule };
  }
  const decay = kind === 'cosine' ? 0 : schedule.decay;
  if (warmup + decay > steps) {
    const rule = `warmup and decay must fit in the ${steps} steps, got ${warmup} + ${decay}`;
    return { field: 'warmup', rule };
  }
  return undefined;
}

/**
 * The learning rate of one step of a run.
 * @param step counts from 1, as AdamW does; beyond `steps` the last rate stays.
 */
export function learningRate(
  schedule: Schedule,
  step: number,
  steps: number,
): number {
  const { kind, peak, warmup } = schedule;
  if (step < warmup) return (peak * step) / warmup;
  if (kind === 'constant') return peak;
  const { floor } = schedule;
  const start = kind === 'cosine' ? warmup : steps - schedule.decay;
  // Share of the way down, 1 at the last step.
  const way = step >= steps ? 1 : Math.max(0, (step - start) / (steps - start));
  const height =
    kind === 'cosine' ? (1 + Math.cos(Math.PI * way)) / 2 : 1 - way;
  return floor + (peak - floor) * height;
}
