import {
  ArgumentError,
  checkSamplerOptions,
  History,
  Random,
  type SamplerOptions,
  sample,
} from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

const logitsOf = (...values: number[]) => Float32Array.from(values);
const none = new History();
const greedy = { temperature: 0 };
const seeded = () => Random.fromSeed(1);
const take = (
  logits: Float32Array,
  options: SamplerOptions,
  history = none,
  random = seeded(),
) => sample(logits, history, options, random);

/** A random source whose one number is chosen. */
const fixed = (uniform: number) =>
  ({ uniform: () => uniform }) as unknown as Random;

describe('greedy', () => {
  it('takes the best token, the lower id of equals', () => {
    expect(take(logitsOf(1, 5, 5, 2), greedy).token).toBe(1);
  });

  it('draws no random number', () => {
    const random = seeded();
    const before = random.state;
    take(logitsOf(1, 2, 3), greedy, none, random);
    expect(random.state).toEqual(before);
  });

  it('gives the log probability of the logits, not of the scores', () => {
    const logits = logitsOf(0, Math.log(3));
    const options = { ...greedy, logitBias: new Map([[0, 100]]) };
    const { token, logprob } = take(logits, options);
    expect(token).toBe(0);
    expect(logprob).toBeCloseTo(Math.log(1 / 4), 6);
  });

  it('does not change the logits', () => {
    const logits = logitsOf(1, 2, 3);
    const history = new History([2]);
    take(logits, { repetitionPenalty: 2, topK: 2, topP: 0.5 }, history);
    expect([...logits]).toEqual([1, 2, 3]);
  });
});

describe('penalties', () => {
  it('divides positive and multiplies negative logits of seen tokens', () => {
    const history = new History([0, 1]);
    const penalised = { ...greedy, repetitionPenalty: 2 };
    expect(take(logitsOf(4, -1, 2.1), penalised, history).token).toBe(2);
    expect(take(logitsOf(4, -1, 1.9), penalised, history).token).toBe(0);
    expect(take(logitsOf(-9, -1, -1.9), penalised, history).token).toBe(2);
    expect(take(logitsOf(-9, -1, -2.1), penalised, history).token).toBe(1);
  });

  it('counts generated tokens for frequency, once for presence', () => {
    const history = new History([1, 1, 1, 1]);
    for (let i = 0; i < 3; i++) history.add(0);
    const frequency = { ...greedy, frequencyPenalty: 0.5 };
    expect(take(logitsOf(3, 1.6), frequency, history).token).toBe(1);
    expect(take(logitsOf(3, 1.4), frequency, history).token).toBe(0);
    const presence = { ...greedy, presencePenalty: 0.5 };
    expect(take(logitsOf(3, 2.6), presence, history).token).toBe(1);
    expect(take(logitsOf(3, 2.4), presence, history).token).toBe(0);
  });

  it('adds the bias before the penalties', () => {
    const options = {
      ...greedy,
      logitBias: new Map([[0, 4]]),
      repetitionPenalty: 2,
    };
    // (-1 + 4) / 2 = 1.5; the other order would give -2 + 4 = 2.
    const history = new History([0]);
    expect(take(logitsOf(-1, 1.7), options, history).token).toBe(1);
    expect(take(logitsOf(-1, 1.3), options, history).token).toBe(0);
  });

  it('never takes a forbidden token', () => {
    const logitBias = new Map([[1, Number.NEGATIVE_INFINITY]]);
    for (let seed = 0; seed < 200; seed++) {
      const random = Random.fromSeed(seed);
      const options = { logitBias, repetitionPenalty: 1.5 };
      const history = new History([1]);
      const { token } = take(logitsOf(0, 9, 0), options, history, random);
      expect(token).not.toBe(1);
    }
  });
});

describe('truncation', () => {
  /** By definition: sort, cut, divide; no shortcut. */
  const probabilities = (
    logits: Float32Array,
    {
      temperature = 1,
      topK = logits.length,
      topP = 1,
      minP = 0,
    }: SamplerOptions,
  ) => {
    const max = Math.max(...logits);
    let kept = [...logits]
      .map((logit, id) => ({ id, p: Math.exp((logit - max) / temperature) }))
      .sort((a, b) => b.p - a.p || a.id - b.id)
      .slice(0, topK);
    const share = topP * kept.reduce((sum, { p }) => sum + p, 0);
    let sum = 0;
    kept = kept.filter(({ p }, i) => {
      const isIn = i === 0 || topP === 1 || sum < share;
      sum += p;
      return isIn;
    });
    kept = kept.filter(({ p }) => p >= minP * (kept[0]?.p ?? 0));
    const total = kept.reduce((all, { p }) => all + p, 0);
    return new Map(kept.map(({ id, p }) => [id, p / total]));
  };

  it('draws each token as often as the definition says', () => {
    const draws = 997;
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: -8, max: 8 }), {
          minLength: 1,
          maxLength: 12,
        }),
        fc.record(
          {
            temperature: fc.constantFrom(0.5, 1, 3),
            topK: fc.integer({ min: 1, max: 14 }),
            topP: fc.constantFrom(0.01, 0.37, 0.61, 0.93, 1),
            minP: fc.constantFrom(0, 0.03, 0.3, 1),
          },
          { requiredKeys: [] },
        ),
        (values, options) => {
          const logits = Float32Array.from(values, (value) => value / 2);
          const counts = new Map<number, number>();
          for (let i = 0; i < draws; i++) {
            const random = fixed((i + 0.5) / draws);
            const { token } = take(logits, options, none, random);
            counts.set(token, (counts.get(token) ?? 0) + 1);
          }
          const wanted = probabilities(logits, options);
          for (const [token, p] of wanted) {
            const got = (counts.get(token) ?? 0) / draws;
            expect(Math.abs(got - p)).toBeLessThanOrEqual(1.01 / draws);
          }
          for (const token of counts.keys()) {
            expect(wanted.has(token)).toBe(true);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  it('keeps the lower ids of equals', () => {
    const logits = new Float32Array(10).fill(3);
    for (const u of [0.01, 0.4, 0.6, 0.999]) {
      expect(take(logits, { topK: 2 }, none, fixed(u)).token).toBeLessThan(2);
      expect(take(logits, { topP: 0.25 }, none, fixed(u)).token).toBeLessThan(
        3,
      );
    }
  });

  it('skips tokens of probability 0 at both ends of the random range', () => {
    const out = Number.NEGATIVE_INFINITY;
    const logits = logitsOf(out, 0, out, 1, out);
    expect(take(logits, {}, none, fixed(0)).token).toBe(1);
    expect(take(logits, {}, none, fixed(1 - 2 ** -33)).token).toBe(3);
    expect(take(logits, { topK: 5 }, none, fixed(0)).token).toBe(1);
  });
});

it('gives the same tokens for the same seed, others for another', () => {
  const logits = Float32Array.from({ length: 50 }, (_, i) => Math.sin(i));
  const run = (seed: number) => {
    const random = Random.fromSeed(seed);
    return Array.from(
      { length: 40 },
      () => take(logits, { topP: 0.9 }, none, random).token,
    );
  };
  expect(run(7)).toEqual(run(7));
  expect(run(7)).not.toEqual(run(8));
});

describe('alternatives', () => {
  it('lists the likeliest tokens of the logits, ties by lower id', () => {
    const logits = logitsOf(1, 3, 0, 3, 2);
    const { top = [] } = take(logits, { ...greedy, top: 3 });
    expect(top.map(({ token }) => token)).toEqual([1, 3, 4]);
    const all = take(logits, { top: 5 }).top ?? [];
    const sum = all.reduce(
      (total, { logprob }) => total + Math.exp(logprob),
      0,
    );
    expect(sum).toBeCloseTo(1, 6);
  });

  it('gives an empty list for 0 and none unless asked', () => {
    expect(take(logitsOf(1, 2), { top: 0 }).top).toEqual([]);
    expect(take(logitsOf(1, 2), {})).not.toHaveProperty('top');
  });
});

describe('refuses', () => {
  const bad = [Number.NaN, Number.POSITIVE_INFINITY];
  it.each(bad)('logits with %d', (value) => {
    expect(() => take(logitsOf(1, value, 2), {})).toThrow(ArgumentError);
    expect(() => take(logitsOf(1, value, 2), greedy)).toThrow(/token 1/);
  });

  it('logits that are all -Infinity, by themselves or by the bias', () => {
    const out = Number.NEGATIVE_INFINITY;
    expect(() => take(logitsOf(out, out), {})).toThrow(/every logit/);
    const logitBias = new Map([
      [0, out],
      [1, out],
    ]);
    expect(() => take(logitsOf(1, 2), { logitBias })).toThrow(/forbids every/);
  });

  const cases: [SamplerOptions, string][] = [
    [{ temperature: -1 }, 'temperature'],
    [{ temperature: Number.NaN }, 'temperature'],
    [{ temperature: Number.POSITIVE_INFINITY }, 'temperature'],
    [{ topK: 0 }, 'topK'],
    [{ topK: 1.5 }, 'topK'],
    [{ topP: 0 }, 'topP'],
    [{ topP: 1.01 }, 'topP'],
    [{ topP: Number.NaN }, 'topP'],
    [{ minP: -0.1 }, 'minP'],
    [{ minP: 2 }, 'minP'],
    [{ repetitionPenalty: 0 }, 'repetitionPenalty'],
    [{ repetitionPenalty: Number.NaN }, 'repetitionPenalty'],
    [{ frequencyPenalty: Number.POSITIVE_INFINITY }, 'frequencyPenalty'],
    [{ presencePenalty: Number.NaN }, 'presencePenalty'],
    [{ top: 11 }, 'top'],
    [{ top: -1 }, 'top'],
    [{ temperature: '1' as unknown as number }, 'temperature'],
    [{ logitBias: new Map([[10, 1]]) }, 'logitBias'],
    [{ logitBias: new Map([[0.5, 1]]) }, 'logitBias'],
    [{ logitBias: new Map([[1, Number.NaN]]) }, 'bias'],
    [{ logitBias: new Map([[1, Number.POSITIVE_INFINITY]]) }, 'bias'],
  ];
  it.each(cases)('%o', (options, name) => {
    expect(() => checkSamplerOptions(options, 10)).toThrow(ArgumentError);
    expect(() => checkSamplerOptions(options, 10)).toThrow(name);
  });

  it('nothing that means something', () => {
    const options = {
      temperature: 0,
      topK: 100,
      topP: 1,
      minP: 1,
      repetitionPenalty: 0.5,
      frequencyPenalty: -2,
      presencePenalty: 0,
      top: 10,
      logitBias: new Map([[9, Number.NEGATIVE_INFINITY]]),
    };
    expect(() => checkSamplerOptions(options, 10)).not.toThrow();
  });
});
