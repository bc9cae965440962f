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
 * Models of laws have up to three layers of about ten operators, evaluated in
 * two ways: errors of 64 roundings each, whose squares add up.
 */
const modelGrowth = Math.sqrt(2 * 3 * 10) * 64;
/**
 * Errors of the forward pass are factors of the backward one, which takes them
 * through up to three layers; each may double them.
 */
const gradientGrowth = 2 ** 3 * modelGrowth;
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

/**
 * Equal within the rounding of a model's gradients.
 * @param floor size that the errors have even where the gradient is smaller.
 */
export const closeGradients = (
  context: LawContext,
  name: string,
  got: Values,
  want: Values,
  floor: number,
) => close(context, name, got, want, gradientGrowth, floor);

function close(
  { dtype }: LawContext,
  name: string,
  got: Values,
  want: Values,
  growth: number,
  floor?: number,
): Comparison {
  const allowed = relativeAllowance(want, growth * roundoff[dtype], floor);
  return compareValues(name, got, want, allowed);
}
