import { laws } from '@asa/core/verify';
import { expect, test } from 'vitest';
import { checkLaws } from './check-laws';

checkLaws('operators');

test('every law has a name of its own', () => {
  const names = laws.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
});
