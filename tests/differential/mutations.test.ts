import { openCpu } from '@asa/backend-cpu';
import { type Backend, type OperatorName, operators } from '@asa/core';
import { differential, verifyAll, withKernels } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { mutants } from './mutants';

const names = Object.keys(operators) as OperatorName[];
const options = { seed: 5, cases: 60 };

let cpu: Backend;
let reference: Backend;
beforeAll(async () => {
  cpu = await openCpu({ poison: true });
  reference = await openCpu({ poison: true });
});
afterAll(async () => {
  await cpu.destroy();
  await reference.destroy();
});

const all = names.flatMap((name) =>
  Object.keys(mutants[name]).map((mutant) => [name, mutant] as const),
);

test('every operator has a mutant', () => {
  for (const name of names) {
    expect(Object.keys(mutants[name]).length, name).toBeGreaterThan(0);
  }
});

const timeout = 30_000;

test.each(all)(
  '%s, %s: is found, and found again',
  {
    timeout,
  },
  async (name, mutant) => {
    const backend = withKernels(cpu, { [name]: mutants[name][mutant] });
    const trial = { backend, reference };
    const outcome = await differential(trial, name, 'f32', options);
    expect(outcome.status).toBe('mismatch');
    expect(outcome.worst === -1 || outcome.worst > 100).toBe(true);
    expect(outcome.detail).toMatch(/replay with --seed 5 --path [\d:]+$/);

    // The path alone leads to the same counterexample.
    const { path = '' } = outcome;
    const again = await differential(trial, name, 'f32', { ...options, path });
    expect(again.detail?.replace(/; replay.*/, '')).toBe(
      outcome.detail?.replace(/; replay.*/, ''),
    );
  },
);

/** Half of the operators broken at once: that half is reported, no other. */
describe.each([0, 1])('operators broken together, half %i', (half) => {
  const broken = names.filter((_, i) => i % 2 === half);

  test(
    'are exactly those that verify reports',
    async () => {
      const backend = withKernels(
        cpu,
        Object.fromEntries(
          broken.map((name) => [name, Object.values(mutants[name])[0]]),
        ),
      );
      const report = await verifyAll({
        backend,
        reference,
        suites: ['operators'],
        dtypes: ['f32'],
        ...options,
      });
      const found = report.rows.filter(({ status }) => status === 'mismatch');
      expect(found.map(({ name }) => name)).toEqual(broken);
      expect(report.passed).toBe(false);
      expect(report.counts).toMatchObject({
        mismatch: broken.length,
        ok: names.length - broken.length,
      });
    },
    timeout,
  );
});
