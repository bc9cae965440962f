import { openCpu } from '@asa/backend-cpu';
import type { Backend } from '@asa/core';
import { verifyAll, withKernels } from '@asa/core/verify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { memoryOf } from '../../packages/backend-cpu/src/memory';

let backend: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
});
afterAll(() => backend.destroy());

const run = (trial: Backend, cases: number) =>
  verifyAll({ backend: trial, reference: backend, suites: ['models'], cases });

test('random models in f32 agree with the same in double', async () => {
  const { rows, passed } = await run(backend, 5);
  expect(rows.map(({ name }) => name)).toContain('GLL');
  expect(rows.every(({ cases, worst }) => cases === 5 && worst > 0)).toBe(true);
  expect(rows.flatMap(({ detail }) => detail ?? [])).toEqual([]);
  expect(passed).toBe(true);
  expect(backend.memory().bytesInUse).toBe(0);
});

test('a gradient that is off by a percent is found, by its models', async () => {
  const broken = withKernels(backend, {
    rmsNormBackward: (own) => (inputs, outputs, attributes) => {
      own(inputs, outputs, attributes);
      const { data } = memoryOf(outputs.dWeight!.storage);
      for (const i of data.keys()) data[i]! *= 1.01;
    },
  });
  const { rows } = await run(broken, 2);
  expect(rows.map(({ status }) => status)).toContain('mismatch');
});
