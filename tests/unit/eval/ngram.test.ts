import { expect, test } from 'vitest';
import { ByteTrigram } from '../../../packages/core/src/eval';

const bytes = (text: string) => new TextEncoder().encode(text);
const code = (character: string) => character.charCodeAt(0);

const text = 'the cat sat on the mat; the cat ate the rat. a cat is a cat';
const model = ByteTrigram.train([
  bytes(text),
  bytes('another text'),
  bytes(''),
]);

test.each([
  ['seen', 't', 'h'],
  ['seen last byte only', 'q', 'a'],
  ['unseen', 'q', 'q'],
])('over all bytes the probabilities sum to 1: %s context', (_, a, b) => {
  let sum = 0;
  for (let c = 0; c < 256; c++) {
    const p = model.probability(code(a), code(b), c);
    expect(p).toBeGreaterThan(0);
    sum += p;
  }
  expect(sum).toBeCloseTo(1, 12);
});

/**
 * By hand, for `ababac`: trigrams aba 2, bab 1, bac 1; two once, one twice, so
 * D3 = 2 / (2 + 2) = 1/2. Bigrams count first bytes: ba 1, ab 1, ac 1; nothing
 * twice, D2 = 1/2. Unigrams: a 1, b 1, c 1, D1 = 1/2.
 */
test('one small text by hand', () => {
  const small = ByteTrigram.train([bytes('ababac')]);
  const p = (context: string, next: string) =>
    small.probability(code(context[0]!), code(context[1]!), code(next));
  // P(a) = (1 - 1/2) / 3 + 1/2 . 3 / 3 . 1/256
  const unigram = 0.5 / 3 + 0.5 / 256;
  // Behind b only a was seen: P(a | b) = (1 - 1/2) / 1 + 1/2 . 1 . P(a)
  const aAfterB = 0.5 + 0.5 * unigram;
  // Behind ab only a: (2 - 1/2) / 2 + (1/2 . 1 / 2) P(a | b)
  expect(p('ab', 'a')).toBeCloseTo(0.75 + 0.25 * aAfterB, 14);
  // Behind ba b and c once each; behind a b and c in one context each.
  const bAfterA = 0.5 / 2 + 0.5 * unigram;
  expect(p('ba', 'b')).toBeCloseTo(0.5 / 2 + 0.5 * bAfterA, 14);
  // Nothing seen behind xy: P(c | xy) = P(c)
  expect(p('xy', 'c')).toBeCloseTo(unigram, 14);
  expect(p('xy', 'z')).toBeCloseTo(0.5 / 256, 14);
  const bits = -Math.log2(p('ab', 'a')) - Math.log2(p('ba', 'b'));
  expect(small.bitsPerByte(bytes('abab'))).toBeCloseTo(bits / 2, 13);
});

test('likes its own language best; a uniform guess is 8 bits', () => {
  const long = ByteTrigram.train([bytes(text.repeat(20))]);
  const own = long.bitsPerByte(bytes('the rat sat on the cat'));
  const other = long.bitsPerByte(bytes('zwölf Boxkämpfer jagen'));
  expect(own).toBeLessThan(2.5);
  expect(other).toBeGreaterThan(own + 3);
});

test('refuses texts without a trigram', () => {
  expect(() => ByteTrigram.train([bytes('ab'), bytes('')])).toThrow(
    /at least 3 bytes/,
  );
  expect(() => model.bitsPerByte(bytes('ab'))).toThrow(/3 bytes, got 2/);
});
