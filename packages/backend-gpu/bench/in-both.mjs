/**
 * Compares an operator in a 16-bit type with itself in f32, which takes other
 * kernels.
 */
import { operators } from '@asa/core';

/** Of the root mean square; of a 16-bit type's roundings. */
export const ALLOWED = 0.01;

/** The root mean square of got - want over that of want. */
export function ratio(got, want) {
  let error = 0;
  let size = 0;
  for (let i = 0; i < want.length; i++) {
    // An LSE of nothing is -inf in both.
    if (got[i] === want[i]) continue;
    error += (got[i] - want[i]) ** 2;
  }
  for (const x of want) size += Number.isFinite(x) ? x ** 2 : 0;
  return Math.sqrt(error / size);
}

/** Tensors in f32; what has no 16-bit type stays, and one tensor stays one. */
export function widener(scope) {
  const made = new Map();
  return (x) => {
    if (x?.dtype !== 'f16' && x?.dtype !== 'bf16') return x;
    const known =
      made.get(x) ?? scope.run(operators.cast, { x }, { dtype: 'f32' }).y;
    made.set(x, known);
    return known;
  };
}

/** An operator's results, and of each its name and `ratio`; the scope's. */
export async function inBoth(scope, operator, inputs, attributes) {
  const wide = widener(scope);
  const widened = Object.fromEntries(
    Object.entries(inputs).map(([name, x]) => [name, wide(x)]),
  );
  const results = scope.run(operators[operator], inputs, attributes);
  const want = scope.run(operators[operator], widened, attributes);
  const errors = [];
  for (const name in want) {
    if (!want[name]) continue;
    const got = await scope.read(wide(results[name]));
    errors.push([name, ratio(got, await scope.read(want[name]))]);
  }
  return { results, errors };
}
