import { openCpu } from '@asa/backend-cpu';
import type { Backend } from '@asa/core';
import { lawContext, laws } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

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

const cases = 200;

/** By what they are about, so that a run can ask for some of them. */
const groups = {
  gradients: /gradients are/,
  bits: /twice/,
  models: /^(F|L|G|N|R|GL|GLL|GR): (?!gradients|the same)/,
};
const isGrouped = (name: string) =>
  Object.values(groups).some((pattern) => pattern.test(name));

describe.each([...Object.entries(groups), ['operators', undefined] as const])(
  'laws of %s',
  (_, pattern) => {
    const some = laws.filter(({ name }) =>
      pattern ? pattern.test(name) : !isGrouped(name),
    );
    test.each(some)('$name', { timeout: 60_000 }, async (law) => {
      const context = lawContext({ backend, reference });
      expect(context).toMatchObject({ dtype: 'f64', isRowwise: true });
      const outcome = await law.check(context, { seed: 3, cases });
      expect(outcome.detail ?? '').toBe('');
      expect(outcome).toMatchObject({ status: 'ok', cases, missing: 0 });
      expect(backend.memory().bytesInUse).toBe(0);
      expect(reference.memory().bytesInUse).toBe(0);
    });
  },
);

test('no law is tried twice or forgotten', () => {
  const names = laws.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
});
