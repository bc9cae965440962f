import { allowance } from '@asa/core/verify';
import { expect, test } from 'vitest';

/** The share of a sum's size that an f32 product of so many terms may lose. */
function allowed(terms: number, transposeA = false): number {
  const ones = (rows: number, columns: number) => ({
    shape: [rows, columns],
    dtype: 'f32' as const,
    data: new Float64Array(rows * columns).fill(1),
  });
  const a = transposeA ? ones(terms, 2) : ones(2, terms);
  const call = {
    inputs: { a, b: ones(terms, 3) },
    attributes: { transposeA },
  };
  const y = { ...ones(2, 3), data: new Float64Array(6).fill(terms) };
  return allowance('matmul', 'y', y, 'f32', call).rms / terms;
}

test('a product keeps 16 roundings up to the longest sum of the cases', () => {
  expect(allowed(7)).toBe(16 * 2 ** -24);
  expect(allowed(1031)).toBe(16 * 2 ** -24);
});

test('longer sums lose as the root of their terms', () => {
  expect(allowed(4 * 1031)).toBeCloseTo(2 * allowed(1031), 15);
  expect(allowed(4 * 1031, true)).toBe(allowed(4 * 1031));
});
