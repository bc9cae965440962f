import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import type { Judgement } from '../verify/fuzz';
import type { Cost } from './cost';

export const benchSuites = [
  'ceilings',
  'matmul',
  'operators',
  'layers',
  'model',
  'training',
] as const;
export type BenchSuite = (typeof benchSuites)[number];

/** Something to measure. */
export interface BenchCase {
  readonly suite: BenchSuite;
  readonly name: string;
  readonly dtype: FloatType;
  /** The shapes in words. */
  readonly shape: string;
  /** Tokens that lie in the context; undefined where there are none. */
  readonly context?: number;
  /** Tokens that one call takes in or generates, where their rate matters. */
  readonly tokens?: number;
  readonly check: Check;
  /** What one call costs; counted, not measured. */
  cost(): Promise<Cost>;
  /** Puts the operands on the backend. */
  prepare(backend: Backend): Promise<Prepared>;
}

/** The comparison that a figure stands behind. */
export interface Check {
  /** Cases with the same key are one comparison. */
  readonly key: string;
  /** `same shapes`, or what is smaller than in the case. */
  readonly on: string;
  judge(backend: Backend, reference: Backend): Promise<Judgement>;
}

/** Operands on a backend. */
export interface Prepared {
  /** Not timed: what each call needs anew. A repetition is then one call. */
  readonly before?: () => Promise<void>;
  /** Enqueues one call, or runs it. */
  readonly run: () => void | Promise<void>;
  free(): void;
}

/** FLOPs that the reference may take for one check: about a second. */
const ORACLE_FLOPS = 5e8;

/**
 * The tokens of a check: all of the case's where the reference can, else the
 * most of `steps` that it can, at least the first.
 */
export function checkTokens(
  tokens: number,
  flops: (tokens: number) => number,
  steps: readonly number[],
): number {
  const [first = 1] = steps;
  const fitting = [...steps, tokens].filter(
    (count) => count <= tokens && flops(count) <= ORACLE_FLOPS,
  );
  return Math.max(Math.min(first, tokens), ...fitting);
}

/** What a check with these tokens stands for. */
export function checkedOn(tokens: number, of: number, unit: string): string {
  return tokens === of ? 'same shapes' : `${tokens} ${unit}`;
}
