import { z } from 'zod';
import { ConfigError } from '../errors';
import { lossScaleSchema } from './loss-scale';
import { scheduleFlaw, scheduleSchema } from './schedule';

const count = z.int().positive();
const moment = z.number().nonnegative().lt(1);

export const trainSchema = z.object({
  /** Of the data's order. */
  seed: z.int().default(0),
  /** Steps of the whole run; what the schedule is stretched over. */
  steps: count,
  /** Most tokens of a row. */
  context: count,
  /** Rows of one step. */
  rows: count,
  /**
   * Rows of one forward pass: less memory, the same gradient. A backend's share
   * of the step when left out, so all on one.
   */
  microRows: count.optional(),
  schedule: scheduleSchema,
  beta1: moment.default(0.9),
  beta2: moment.default(0.95),
  eps: z.number().positive().default(1e-8),
  weightDecay: z.number().nonnegative().default(0.1),
  decay: z.enum(['matrices', 'all']).default('matrices'),
  /** Largest global gradient norm; `null` for none. */
  clip: z.number().positive().nullable().default(1),
  /** A loss this many nats above its running mean stops the run. */
  spike: z.number().positive().optional(),
  /** Of f16 models; others need none. */
  lossScale: lossScaleSchema.prefault({}),
});

/** All that shapes a run's numbers, but for the model and the data. */
export type TrainConfig = z.infer<typeof trainSchema>;
/** What `parseTrainConfig` accepts: defaults may be left out. */
export type TrainConfigInput = z.input<typeof trainSchema>;

/**
 * Checks a training configuration and fills in the defaults.
 * @param path named in errors.
 * @throws ConfigError with the field that breaks a rule.
 */
export function parseTrainConfig(
  value: unknown,
  path = 'train config',
): TrainConfig {
  const parsed = trainSchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ConfigError(
      path,
      issue?.path.join('.') || undefined,
      issue?.message ?? 'invalid',
    );
  }
  const flaw = scheduleFlaw(parsed.data.schedule, parsed.data.steps);
  if (flaw) throw new ConfigError(path, `schedule.${flaw.field}`, flaw.rule);
  return parsed.data;
}
