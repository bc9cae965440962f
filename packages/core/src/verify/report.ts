import type { FloatType } from '../dtype';

export type Suite = 'operators' | 'models' | 'laws' | 'golden';
export type RowStatus = 'ok' | 'mismatch' | 'missing' | 'skipped';

/** One line of a verification report; survives JSON. */
export interface Row {
  readonly suite: Suite;
  /**
   * An operator, a law, a pattern of layers, or a reference file with what of
   * it was compared.
   */
  readonly name: string;
  readonly dtype: FloatType;
  /** Cases that ran. */
  readonly cases: number;
  /** Cases that the backend cannot run. */
  readonly missing: number;
  /** The worst error in percent of what is allowed; -1 stands for infinity. */
  readonly worst: number;
  readonly status: RowStatus;
  /** The counterexample, or the reason why something did not run. */
  readonly detail?: string;
  /** Replays the counterexample, together with the report's seed. */
  readonly path?: string;
}

export interface Report {
  readonly backend: string;
  readonly device: string;
  readonly seed: number;
  readonly rows: readonly Row[];
  /** Nothing is wrong and, where everything is required, nothing is missing. */
  readonly passed: boolean;
  readonly counts: Readonly<Record<RowStatus, number>>;
  /** Cases that the backend could not run, in all rows. */
  readonly missingCases: number;
}

/** @param require what is missing or skipped counts as a failure. */
export function summarize(
  { name, description }: { name: string; description: string },
  seed: number,
  rows: readonly Row[],
  require: boolean,
): Report {
  const counts = { ok: 0, mismatch: 0, missing: 0, skipped: 0 };
  for (const { status } of rows) counts[status] += 1;
  const missingCases = rows.reduce((sum, { missing }) => sum + missing, 0);
  const lacks = missingCases + counts.missing + counts.skipped > 0;
  return {
    backend: name,
    device: description,
    seed,
    rows,
    passed: counts.mismatch === 0 && !(require && lacks),
    counts,
    missingCases,
  };
}
