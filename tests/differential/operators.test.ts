import { openCpu } from '@asa/backend-cpu';
import { type Backend, type FloatType, operators } from '@asa/core';
import { differential, operatorCases } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

type Name = keyof typeof operators;
const names = Object.keys(operators) as Name[];
const dtypes: FloatType[] = ['f32', 'f16', 'bf16', 'f64'];

/** Memory starts as NaN, so that reading what nobody wrote is seen. */
let backend: Backend;
let reference: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
  reference = await openCpu({ poison: true });
});
afterAll(async () => {
  await backend.destroy();
  await reference.destroy();
});

test('every operator has random cases', () => {
  expect(Object.keys(operatorCases)).toEqual(names);
});

describe.each(dtypes)('the CPU in %s against itself in double', (dtype) => {
  test.each(names)('%s', { timeout: 30_000 }, async (name) => {
    const options = { seed: 11, cases: 100 };
    const trial = { backend, reference };
    const outcome = await differential(trial, name, dtype, options);
    expect(outcome.detail ?? '').toBe('');
    expect(outcome).toMatchObject({ status: 'ok', cases: 100, missing: 0 });
    expect(backend.memory().bytesInUse).toBe(0);
    expect(reference.memory().bytesInUse).toBe(0);
  });
});
