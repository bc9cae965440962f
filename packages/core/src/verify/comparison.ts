import type { FloatType } from '../dtype';
import type { OperatorName } from '../ops';
import { formatShape } from '../tensor';
import { type Allowance, allowance, type Call, isExact } from './tolerances';
import { rootMeanSquare, roundedTo, type Values } from './values';

/** How one result compares with the one wanted. */
export interface Comparison {
  /** The worst error as a percentage of what is allowed; over 100 is wrong. */
  readonly percent: number;
  /** What is wrong, in words; only when something is. */
  readonly detail?: string;
}

export const fine: Comparison = { percent: 0 };

export const wrong = (detail: string): Comparison => ({
  percent: Number.POSITIVE_INFINITY,
  detail,
});

/** The worse of several; of the first where they are equally bad. */
export function worst(comparisons: Iterable<Comparison>): Comparison {
  let result = fine;
  for (const comparison of comparisons) {
    // Worse than any number.
    if (Number.isNaN(comparison.percent)) return comparison;
    if (comparison.percent > result.percent) result = comparison;
  }
  return result;
}

/** Compares all outputs of an operator by its tolerances. */
export function compareOutputs(
  operator: OperatorName,
  got: Readonly<Record<string, Values>>,
  want: Readonly<Record<string, Values>>,
  dtype: FloatType,
  call: Call,
): Comparison {
  const names = new Set([...Object.keys(got), ...Object.keys(want)]);
  return worst(
    [...names].map((name) => {
      const [a, b] = [got[name], want[name]];
      if (!a || !b) return wrong(`${name} is ${a ? 'extra' : 'missing'}`);
      if (a.dtype === 'i32') return compareBits(name, a, b);
      if (isExact(operator)) {
        const rounded = roundedTo(Float64Array.from(b.data), a.dtype);
        return compareBits(name, a, { ...a, data: rounded });
      }
      const typed = { ...b, dtype: a.dtype };
      return compareValues(
        name,
        a,
        b,
        allowance(operator, name, typed, dtype, call),
      );
    }),
  );
}

/** Compares by absolute allowances; infinities must agree, NaN never does. */
export function compareValues(
  name: string,
  got: Values,
  want: Values,
  allowed: Allowance,
): Comparison {
  if (got.data.length !== want.data.length) {
    return wrong(
      `${name} must be ${formatShape(want.shape)}, got ${formatShape(got.shape)}`,
    );
  }
  const errors = new Float64Array(got.data.length);
  let at = 0;
  for (let i = 0; i < errors.length; i++) {
    const [a, b] = [got.data[i] ?? 0, want.data[i] ?? 0];
    const error = a === b ? 0 : Math.abs(a - b);
    if (!Number.isFinite(error)) return wrong(place(name, got, want, i));
    errors[i] = error;
    if (error > (errors[at] ?? 0)) at = i;
  }
  const percent = Math.max(
    share(rootMeanSquare(errors), allowed.rms),
    share(errors[at] ?? 0, allowed.max),
  );
  if (percent <= 100) return { percent };
  return {
    percent,
    detail: `${place(name, got, want, at)}, ${formatPercent(percent)} of the allowance`,
  };
}

/** Every bit must agree; 0 and -0 are told apart. */
export function compareBits(
  name: string,
  got: Values,
  want: Values,
): Comparison {
  if (got.data.length !== want.data.length) {
    return wrong(
      `${name} must be ${formatShape(want.shape)}, got ${formatShape(got.shape)}`,
    );
  }
  for (let i = 0; i < got.data.length; i++) {
    if (!Object.is(got.data[i], want.data[i])) {
      return wrong(`${place(name, got, want, i)}, must agree to the bit`);
    }
  }
  return fine;
}

/** An allowance relative to the size of what is wanted, at least of `floor`. */
export function relativeAllowance(
  want: Values,
  relative: number,
  floor = 0,
): Allowance {
  const size = Math.max(rootMeanSquare(want.data), floor);
  return {
    rms: relative * size,
    max: 4 * relative * Math.max(size, peakOf(want)),
  };
}

export function formatPercent(percent: number): string {
  if (!(percent < 1e6)) return 'over a million %';
  return `${percent >= 10 ? Math.round(percent) : percent.toPrecision(2)} %`;
}

function peakOf({ data }: Values): number {
  let result = 0;
  for (const value of data) {
    if (Number.isFinite(value)) result = Math.max(result, Math.abs(value));
  }
  return result;
}

function share(error: number, allowed: number): number {
  if (error === 0) return 0;
  return allowed === 0 ? Number.POSITIVE_INFINITY : (100 * error) / allowed;
}

function place(name: string, got: Values, want: Values, flat: number): string {
  const value = want.data[flat];
  const wanted = Number.isNaN(value)
    ? 'but the reference itself is NaN'
    : `must be ${value}`;
  return `${name}[${indexOf(got, flat)}] is ${got.data[flat]}, ${wanted}`;
}

function indexOf({ shape }: Values, flat: number): string {
  let rest = flat;
  return shape
    .toReversed()
    .map((extent) => {
      const index = rest % extent;
      rest = Math.floor(rest / extent);
      return index;
    })
    .toReversed()
    .join(', ');
}
