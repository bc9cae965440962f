import type { FloatType } from '@asa/core';
import { allowance } from '@asa/core/verify';
import { expect, test } from 'vitest';

const filled = (shape: number[], value: number, dtype: FloatType = 'f16') => ({
  shape,
  dtype,
  data: new Float64Array(shape.reduce((a, b) => a * b, 1)).fill(value),
});

/** The share of a sum's size that an f32 product of so many terms may lose. */
function allowed(terms: number, transposeA = false): number {
  const ones = (rows: number, columns: number) =>
    filled([rows, columns], 1, 'f32');
  const a = transposeA ? ones(terms, 2) : ones(2, terms);
  const call = {
    inputs: { a, b: ones(terms, 3) },
    attributes: { transposeA },
  };
  const y = filled([2, 3], terms, 'f32');
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

test('f16 below its normal numbers is off by half a step of theirs', () => {
  const allowed = (value: number) => {
    const y = filled([1, 1], value);
    return allowance('swiglu', 'y', y, 'f16', {
      inputs: { gate: filled([1, 1], value) },
      attributes: {},
    });
  };
  expect(allowed(0)).toEqual({ rms: 2 ** -25, max: 2 ** -25 });
  expect(allowed(1).rms).toBeCloseTo(2 ** -11, 5);
});

test('a branch of gates may lose what its own values and gate make of it', () => {
  const row = (value: number) => filled([1, 1, 4], value);
  const call = {
    inputs: {
      gates: { ...row(0), shape: [1, 1, 2], data: Float64Array.of(-20, 20) },
      compressed: row(8),
      selected: row(2),
      dY: row(3),
    },
    attributes: {},
  };
  const allowed = (output: string) =>
    allowance(
      'gatedSumBackward',
      output,
      filled([1, 1], 0, 'f32'),
      'f16',
      call,
    );
  // Four terms of 2 times 3, that do not cancel; a gate that is shut.
  expect(allowed('deltaSelected').rms).toBeCloseTo(2 * 2 ** -11 * 12, 4);
  expect(allowed('deltaCompressed').rms).toBeLessThan(1e-8);
});
