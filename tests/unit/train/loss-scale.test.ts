import { expect, test } from 'vitest';
import { LossScale } from '../../../packages/core/src/train/loss-scale';

const make = (initial: number, growEvery = 2) =>
  new LossScale({ initial, growEvery });

test('doubles after steps without overflow in a row, up to 2^32', () => {
  const scale = make(2 ** 30);
  const seen = [1, 2, 3, 4, 5, 6, 7, 8].map(() => {
    scale.grow();
    return Math.log2(scale.value);
  });
  expect(seen).toEqual([30, 31, 31, 32, 32, 32, 32, 32]);
});

test('an overflow halves it and starts the count again', () => {
  const scale = make(8, 3);
  scale.grow();
  scale.grow();
  expect(scale.shrink()).toBe(true);
  expect(scale.state).toEqual({ scale: 4, streak: 0 });
  scale.grow();
  expect(scale.value).toBe(4);
});

test('gives up at 2^-14', () => {
  const scale = make(2 ** -13);
  expect(scale.shrink()).toBe(true);
  expect(scale.shrink()).toBe(false);
  expect(scale.value).toBe(2 ** -14);
});

test('goes on from its state', () => {
  const scale = make(8, 3);
  scale.restore({ scale: 64, streak: 2 });
  scale.grow();
  expect(scale.state).toEqual({ scale: 128, streak: 0 });
});
