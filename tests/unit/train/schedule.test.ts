import { expect, test } from 'vitest';
import {
  learningRate,
  parseTrainConfig,
  type Schedule,
} from '../../../packages/core/src/train';

const rates = (schedule: Schedule, steps: number, at: readonly number[]) =>
  at.map((step) => learningRate(schedule, step, steps));

test('warm-up climbs in a line and reaches the peak at its last step', () => {
  const schedule = { kind: 'constant', peak: 4, warmup: 4 } as const;
  expect(rates(schedule, 10, [1, 2, 3, 4, 5, 99])).toEqual([1, 2, 3, 4, 4, 4]);
  const none = { kind: 'constant', peak: 4, warmup: 0 } as const;
  expect(rates(none, 10, [1, 2])).toEqual([4, 4]);
});

test('a cosine goes from the peak through the middle to the floor', () => {
  const schedule = { kind: 'cosine', peak: 3, warmup: 2, floor: 1 } as const;
  const [first, peak, middle, last, beyond] = rates(
    schedule,
    12,
    [1, 2, 7, 12, 50],
  );
  expect([first, peak, last, beyond]).toEqual([1.5, 3, 1, 1]);
  expect(middle).toBeCloseTo(2, 14);
  // A quarter of the way down: (1 + cos(pi / 4)) / 2 of the height is left.
  const quarter = learningRate({ ...schedule, warmup: 0 }, 3, 12);
  expect(quarter).toBeCloseTo(1 + (1 + Math.SQRT1_2), 14);
});

test('warm-up, stable, decay: a trapezium', () => {
  const schedule = {
    kind: 'warmup-stable-decay',
    peak: 8,
    warmup: 2,
    decay: 4,
    floor: 0,
  } as const;
  expect(rates(schedule, 10, [1, 2, 3, 6, 7, 8, 9, 10, 11])).toEqual([
    4, 8, 8, 8, 6, 4, 2, 0, 0,
  ]);
  const noDecay = { ...schedule, decay: 0 };
  expect(rates(noDecay, 10, [3, 9, 10])).toEqual([8, 8, 0]);
});

const config = { steps: 10, context: 8, rows: 1 };

test.each([
  [{ kind: 'cosine', peak: 1, warmup: 11 }, /schedule.warmup: .*10 steps/],
  [{ kind: 'cosine', peak: 1, floor: 2 }, /schedule.floor: must be at most/],
  [{ kind: 'cosine', peak: Number.NaN }, /schedule.peak/],
  [{ kind: 'constant', peak: 0 }, /schedule.peak/],
  [{ kind: 'constant', peak: 1, warmup: 0.5 }, /schedule.warmup/],
  [{ kind: 'warmup-stable-decay', peak: 1, warmup: 6, decay: 5 }, /6 \+ 5/],
  [{ kind: 'linear', peak: 1 }, /schedule/],
])('refuses %j', (schedule, message) => {
  expect(() => parseTrainConfig({ ...config, schedule })).toThrow(message);
});

test.each([
  [{ steps: 0 }, /steps/],
  [{ rows: 1.5 }, /rows/],
  [{ beta1: 1 }, /beta1/],
  [{ eps: 0 }, /eps/],
  [{ clip: -1 }, /clip/],
  [{ decay: 'some' }, /decay/],
])('refuses %j beside a good schedule', (change, message) => {
  const schedule = { kind: 'constant', peak: 1 };
  expect(() => parseTrainConfig({ ...config, schedule, ...change })).toThrow(
    message,
  );
  expect(() => parseTrainConfig({ ...config, schedule })).not.toThrow();
});
