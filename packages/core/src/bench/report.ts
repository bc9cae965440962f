import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import type { BenchSuite } from './case';
import type { Cost } from './cost';
import type { Timing } from './timing';

/**
 * One case. `mismatch`: the backend computes something else, so there is no
 * time. `missing`: it cannot run the case. `failed`: it should have.
 */
export interface BenchRow {
  readonly suite: BenchSuite;
  readonly name: string;
  readonly dtype: FloatType;
  readonly shape: string;
  readonly context?: number | undefined;
  readonly tokens?: number | undefined;
  readonly status: 'ok' | 'mismatch' | 'missing' | 'failed';
  /** Why there is no time. */
  readonly detail?: string;
  /** `same shapes`, or what the check has fewer of. */
  readonly checkedOn: string;
  /** Worst error of the check, in percent of what is allowed. */
  readonly worst?: number;
  readonly cost?: Cost;
  readonly timing?: Timing;
}

/** Rates of a row at its median time. */
export interface Rates {
  readonly teraflops: number;
  /** Of the bytes that must move. */
  readonly gigabytesPerSecond: number;
  /** Percent of the best matrix product of the type in this run. */
  readonly ofPeak?: number | undefined;
  /** Percent of the best bandwidth of this run's ceilings. */
  readonly ofBandwidth?: number | undefined;
  readonly tokensPerSecond?: number | undefined;
}

export interface BenchReport {
  readonly backend: string;
  readonly device: string;
  /** When it was made, ISO 8601. */
  readonly date: string;
  readonly rows: readonly (BenchRow & { readonly rates?: Rates | undefined })[];
  /** Every case was tried; false after an interruption. */
  readonly complete: boolean;
  /** No mismatch. */
  readonly passed: boolean;
}

export function reportOf(
  { name, description }: Pick<Backend, 'name' | 'description'>,
  rows: readonly BenchRow[],
  complete: boolean,
): BenchReport {
  const ceilings = ceilingsOf(rows);
  return {
    backend: name,
    device: description,
    date: new Date().toISOString(),
    rows: rows.map((row) => ({ ...row, rates: ratesOf(row, ceilings) })),
    complete,
    passed: rows.every(({ status }) => status !== 'mismatch'),
  };
}

interface Ceilings {
  readonly peak: ReadonlyMap<FloatType, number>;
  readonly bandwidth: number | undefined;
}

/** The best of the run: matrix products by type, and the bandwidth. */
function ceilingsOf(rows: readonly BenchRow[]): Ceilings {
  const peak = new Map<FloatType, number>();
  let bandwidth: number | undefined;
  for (const row of rows) {
    const raw = rawRates(row);
    if (!raw) continue;
    if (row.suite === 'ceilings' && ['copy', 'add'].includes(row.name)) {
      bandwidth = Math.max(bandwidth ?? 0, raw.gigabytesPerSecond);
    } else if (row.suite === 'ceilings' || row.suite === 'matmul') {
      const best = Math.max(peak.get(row.dtype) ?? 0, raw.teraflops);
      peak.set(row.dtype, best);
    }
  }
  return { peak, bandwidth };
}

function ratesOf(
  row: BenchRow,
  { peak, bandwidth }: Ceilings,
): Rates | undefined {
  const raw = rawRates(row);
  if (!raw) return undefined;
  const best = peak.get(row.dtype);
  return {
    ...raw,
    ofPeak: best && (100 * raw.teraflops) / best,
    ofBandwidth: bandwidth && (100 * raw.gigabytesPerSecond) / bandwidth,
  };
}

function rawRates({ cost, timing, tokens }: BenchRow) {
  if (!cost || !timing) return undefined;
  return {
    teraflops: cost.flops / timing.ms / 1e9,
    gigabytesPerSecond: cost.bytes / timing.ms / 1e6,
    tokensPerSecond: tokens && (1000 * tokens) / timing.ms,
  };
}
