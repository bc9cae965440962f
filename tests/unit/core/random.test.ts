import { describe, expect, test } from 'vitest';
import { Random } from '../../../packages/core/src/random';

describe('normal numbers', () => {
  const count = 200_001;
  const values = new Float64Array(count);
  Random.fromSeed(5).fillNormal(values, 0.5);
  const share = (is: (x: number) => boolean) =>
    values.filter(is).length / count;
  const moment = (power: number) =>
    values.reduce((sum, x) => sum + (x / 0.5) ** power, 0) / count;

  test('have the moments and the tails of the normal distribution', () => {
    // Six standard errors of each.
    const within = (found: number, wanted: number, variance: number) =>
      expect(Math.abs(found - wanted)).toBeLessThan(
        6 * Math.sqrt(variance / count),
      );
    within(moment(1), 0, 1);
    within(moment(2), 1, 2);
    within(moment(3), 0, 15);
    within(moment(4), 3, 96);
    for (const [deviations, wanted] of [
      [1, 0.158655],
      [2, 0.02275],
      [3, 0.00135],
    ] as const) {
      const variance = wanted * (1 - wanted);
      within(
        share((x) => x > deviations * 0.5),
        wanted,
        variance,
      );
      within(
        share((x) => x < -deviations * 0.5),
        wanted,
        variance,
      );
    }
  });

  test('do not depend on those before', () => {
    const next = values.subarray(1);
    const product = next.reduce((sum, x, i) => sum + x * values[i]!, 0);
    expect(Math.abs(product / 0.25 / count)).toBeLessThan(6 / Math.sqrt(count));
  });

  test('follow from the seed, and go on from a state', () => {
    const [first, again] = [Random.fromSeed(7), Random.fromSeed(7)];
    const [a, b] = [new Float64Array(5), new Float64Array(5)];
    first.fillNormal(a, 1);
    again.fillNormal(b, 1);
    expect(b).toEqual(a);
    const resumed = Random.fromState(first.state);
    first.fillNormal(a, 1);
    resumed.fillNormal(b, 1);
    expect(b).toEqual(a);
    expect(new Set(a).size).toBe(5);
  });
});
