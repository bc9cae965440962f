import type fc from 'fast-check';
import type { Backend } from '../../backend';
import type { FloatType } from '../../dtype';
import {
  type Comparison,
  compareBits,
  compareValues,
  relativeAllowance,
} from '../comparison';
import { type FuzzOptions, fuzz, type Judgement, type Outcome } from '../fuzz';
import { roundoff, type Values } from '../values';

/** What a law is tried on. */
export interface LawContext {
  readonly backend: Backend;
  /** Computes in double, for inputs such as an LSE. */
  readonly reference: Backend;
  /** f64 where the backend has it: rounding then hides nothing. */
  readonly dtype: FloatType;
  /**
   * Different schedules of the same sums give the same bits, as on a backend
   * that makes every row by itself, in order.
   */
  readonly isRowwise: boolean;
}

/** A statement of maths.md §7 about every backend. */
export interface Law {
  readonly name: string;
  check(context: LawContext, options: FuzzOptions): Promise<Outcome>;
}

export interface LawBody<T> {
  readonly name: string;
  readonly arbitrary: fc.Arbitrary<T>;
  judge(context: LawContext, value: T): Promise<Judgement>;
  describe(value: T, dtype: FloatType): string;
}

export function law<T>({ name, arbitrary, judge, describe }: LawBody<T>): Law {
  return {
    name,
    check: (context, options) =>
      fuzz(
        arbitrary,
        (value) => judge(context, value),
        (value) => describe(value, context.dtype),
        options,
      ),
  };
}

/**
 * A layer is about ten operators of at most 64 roundings each; models of laws
 * have up to three, and two ways of the same sums differ by both their errors.
 */
const modelGrowth = 2 * 3 * 10 * 64;
/** One operator, evaluated in two ways. */
const operatorGrowth = 2 * 64;

/** Equal to the bit where rows are made alone, within rounding elsewhere. */
export function sameRows(
  context: LawContext,
  name: string,
  got: Values,
  want: Values,
): Comparison {
  return context.isRowwise
    ? compareBits(name, got, want)
    : close(context, name, got, want, operatorGrowth);
}

/** Equal within the rounding of one operator. */
export const closeResults = (
  context: LawContext,
  name: string,
  got: Values,
  want: Values,
) => close(context, name, got, want, operatorGrowth);

/** Equal within the rounding of a whole model. */
export const closeModels = (
  context: LawContext,
  name: string,
  got: Values,
  want: Values,
) => close(context, name, got, want, modelGrowth);

function close(
  { dtype }: LawContext,
  name: string,
  got: Values,
  want: Values,
  growth: number,
): Comparison {
  const allowed = relativeAllowance(want, growth * roundoff[dtype]);
  return compareValues(name, got, want, allowed);
}
