import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../../packages/core/src/errors';
import { SPECIAL_TOKENS, trainBpe } from '../../../packages/core/src/text';
import { sampleText, trainedTokenizer } from './trained';

const merges = (text: string, count: number) =>
  trainBpe([text], { vocabularySize: 263 + count }).tokenizerJson.model.merges;

describe('trainBpe', () => {
  it('merges the most frequent pair first', () => {
    expect(merges('ab ab ab cd', 2)).toEqual(['a b', 'Ġ ab']);
  });

  it('breaks ties by the smaller left id, then the smaller right id', () => {
    expect(merges('cb\nca\nba', 3)).toEqual(['b a', 'c a', 'c b']);
  });

  it('never spells a token twice', () => {
    const { model } = trainBpe([sampleText()], {
      vocabularySize: 360,
    }).tokenizerJson;
    const spelled = model.merges.map((merge) => merge.replace(' ', ''));
    expect(new Set(spelled).size).toBe(spelled.length);
    expect(Object.values(model.vocab)).toHaveLength(360);
  });

  it('keeps digits apart', () => {
    const { tokenizer } = trainedTokenizer();
    const ids = tokenizer.encode(' 1234567', { addSpecialTokens: false });
    expect(Array.from(ids, (id) => tokenizer.token(id))).toEqual([
      'Ġ',
      ...'1234567',
    ]);
  });

  it('gives the special tokens the first ids', () => {
    const { tokenizer } = trainedTokenizer();
    const ids = tokenizer.encode('<|user|>hi<|end|></s>');
    expect([ids[0], ids[1], ...ids.slice(-2)]).toEqual([0, 4, 6, 1]);
    expect([tokenizer.bosId, tokenizer.eosId]).toEqual([0, 1]);
    expect(SPECIAL_TOKENS.every((_, id) => tokenizer.isSpecial(id))).toBe(true);
    expect(tokenizer.isSpecial(SPECIAL_TOKENS.length)).toBe(false);
  });

  it('is deterministic', () => {
    const once = JSON.stringify(trainedTokenizer().tokenizerJson);
    expect(JSON.stringify(trainedTokenizer().tokenizerJson)).toBe(once);
  });

  it('reports counting, then merging up to the total', () => {
    const seen: string[] = [];
    trainBpe([sampleText(), 'more'], {
      vocabularySize: 340,
      onProgress: ({ stage, done, total }) =>
        seen.push(`${stage} ${done}/${total}`),
    });
    const { length } = sampleText();
    expect(seen).toEqual([
      `count ${length}/undefined`,
      `count ${length + 4}/undefined`,
      'merge 64/77',
      'merge 77/77',
    ]);
  });

  it('takes words of any length', () => {
    const { model } = trainBpe(['x'.repeat(100_000)], {
      vocabularySize: 268,
    }).tokenizerJson;
    expect(model.merges).toEqual([
      'x x',
      'xx xx',
      'xxxx xxxx',
      'xxxxxxxx xxxxxxxx',
      'xxxxxxxxxxxxxxxx xxxxxxxxxxxxxxxx',
    ]);
  });

  it('refuses sizes out of range and text that is too poor', () => {
    for (const vocabularySize of [0, 263, 300.5, 65_537, Number.NaN]) {
      expect(() => trainBpe(['a b'], { vocabularySize })).toThrow(
        ArgumentError,
      );
    }
    expect(() => trainBpe(['ab'], { vocabularySize: 300 })).toThrow(
      /pairs for 300 tokens, got 264/,
    );
  });
});
