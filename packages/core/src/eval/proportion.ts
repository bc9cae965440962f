/** How often something came true. Plain data. */
export interface Proportion {
  readonly trials: number;
  readonly correct: number;
  /** Share of the trials, from 0 to 1. */
  readonly accuracy: number;
  /**
   * Of `accuracy`: the deviation of the trials over the root of their number,
   * `sqrt(p (1 - p) / (n - 1))`; NaN for a single trial.
   */
  readonly standardError: number;
}

export function proportion(correct: number, trials: number): Proportion {
  const accuracy = correct / trials;
  const standardError =
    trials > 1
      ? Math.sqrt((accuracy * (1 - accuracy)) / (trials - 1))
      : Number.NaN;
  return { trials, correct, accuracy, standardError };
}
