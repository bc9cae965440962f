import { z } from 'zod';

export const lossScaleSchema = z.object({
  /** Factor of the first step; a power of two keeps every bit. */
  initial: z
    .number()
    .positive()
    .default(2 ** 16),
  /** Steps without overflow after which it doubles. */
  growEvery: z.int().positive().default(500),
});

export const lossScaleStateSchema = z.object({
  scale: z.number().positive(),
  /** Steps without overflow since it last changed. */
  streak: z.int().nonnegative(),
});

export type LossScaleState = z.infer<typeof lossScaleStateSchema>;

/** Below, a gradient that overflows is no matter of scale. */
const least = 2 ** -14;
/** Gradients are summed in f32: far from its end. */
const most = 2 ** 32;

/**
 * The factor that keeps f16 gradients above the smallest f16: halved when one
 * overflows, doubled after a while without. Source: arXiv 1710.03740 §3.2.
 */
export class LossScale {
  private scale: number;
  private streak = 0;

  constructor(private readonly options: z.infer<typeof lossScaleSchema>) {
    this.scale = options.initial;
  }

  get value(): number {
    return this.scale;
  }

  get state(): LossScaleState {
    return { scale: this.scale, streak: this.streak };
  }

  restore({ scale, streak }: LossScaleState): void {
    this.scale = scale;
    this.streak = streak;
  }

  /** A step went well. */
  grow(): void {
    this.streak += 1;
    if (this.streak < this.options.growEvery) return;
    this.streak = 0;
    this.scale = Math.min(2 * this.scale, most);
  }

  /** A gradient overflowed; false when a smaller scale would not help. */
  shrink(): boolean {
    this.streak = 0;
    if (this.scale <= least) return false;
    this.scale /= 2;
    return true;
  }
}
