import fc from 'fast-check';
import { nextTurn } from '../engine/event-loop';
import { UnsupportedError } from '../errors';
import { type Comparison, formatPercent } from './comparison';

/** What one case gave: how good it was, or why it could not run. */
export type Judgement = Comparison | { readonly missing: string };

export interface FuzzOptions {
  readonly seed: number;
  readonly cases: number;
  /** Replays one counterexample. */
  readonly path?: string;
  readonly signal?: AbortSignal;
}

/** What all cases gave. */
export interface Outcome {
  readonly status: 'ok' | 'mismatch' | 'missing';
  /** Cases that ran. */
  readonly cases: number;
  /** Cases that the backend cannot run, and its reasons. */
  readonly missing: number;
  readonly reasons: readonly string[];
  /** The worst error in percent of what is allowed; -1 stands for infinity. */
  readonly worst: number;
  /** The smallest failing case, and how to run it again. */
  readonly detail?: string;
  readonly path?: string;
}

/**
 * Judges random cases. A failing one is shrunk to the smallest that fails.
 * Deterministic by seed and path. Errors other than `UnsupportedError` count
 * as mismatches.
 */
export async function fuzz<T>(
  arbitrary: fc.Arbitrary<T>,
  judge: (value: T) => Promise<Judgement>,
  describe: (value: T) => string,
  { seed, cases, path, signal }: FuzzOptions,
): Promise<Outcome> {
  const tally = new Tally();
  let turned = performance.now();
  const property = fc.asyncProperty(arbitrary, async (value) => {
    if (signal?.aborted) return;
    if (performance.now() - turned > 50) {
      await nextTurn();
      turned = performance.now();
    }
    tally.count(await judgeSafely(judge, value));
  });
  const result = await fc.check(property, {
    seed,
    numRuns: cases,
    ...(path !== undefined && { path }),
  });
  signal?.throwIfAborted();
  if (!result.failed) return tally.outcome();
  const [value] = result.counterexample ?? [];
  const fault = faultOf(result.errorInstance);
  const at = result.counterexamplePath ?? '';
  return {
    ...tally.outcome(),
    status: 'mismatch',
    worst: Number.isFinite(fault.percent) ? fault.percent : -1,
    detail: `${describe(value as T)}: ${fault.message}; replay with --seed ${seed} --path ${at}`,
    path: at,
  };
}

class Mismatch extends Error {
  constructor(
    readonly percent: number,
    message: string,
  ) {
    super(message);
  }
}

function faultOf(error: unknown): { percent: number; message: string } {
  if (error instanceof Mismatch) return error;
  const message = error instanceof Error ? error.message : String(error);
  return { percent: Number.POSITIVE_INFINITY, message };
}

async function judgeSafely<T>(
  judge: (value: T) => Promise<Judgement>,
  value: T,
): Promise<Judgement> {
  try {
    return await judge(value);
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error;
    return { missing: `${error.operator}: ${error.reason}` };
  }
}

class Tally {
  private ran = 0;
  private missing = 0;
  private worst = 0;
  private readonly reasons = new Set<string>();

  count(judgement: Judgement): void {
    if ('missing' in judgement) {
      this.missing += 1;
      this.reasons.add(judgement.missing);
      return;
    }
    const { percent, detail } = judgement;
    if (!(percent <= 100)) {
      throw new Mismatch(percent, detail ?? formatPercent(percent));
    }
    this.ran += 1;
    this.worst = Math.max(this.worst, percent);
  }

  outcome(): Outcome {
    const { ran: cases, missing, worst, reasons } = this;
    const isMissing = cases === 0 && missing > 0;
    return {
      status: isMissing ? 'missing' : 'ok',
      cases,
      missing,
      reasons: [...reasons],
      worst,
    };
  }
}
