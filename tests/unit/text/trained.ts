import { Tokenizer, trainBpe } from '../../../packages/core/src/text';

const SYLLABLES = 'the ka rin mo stu ed ly bra ing no tor es um wha vi'.split(
  ' ',
);

/** Some 60 KB of prose-like text, the same at each call. */
export function sampleText(): string {
  let text = '';
  for (let i = 0; i < 8_000; i++) {
    const parts = [i, i >> 2, i >> 5].slice(0, 1 + (i % 3));
    const word = parts.map((n) => SYLLABLES[n % SYLLABLES.length]).join('');
    const end = i % 13 === 0 ? '.\n\n' : i % 5 === 0 ? ', ' : ' ';
    text += `${i % 17 === 0 ? `“${word}’s” ${i}` : word}${end}`;
  }
  return text;
}

/** A small trained tokenizer and the objects it was opened from. */
export function trainedTokenizer(vocabularySize = 330) {
  const trained = trainBpe([sampleText(), 'naïve café 日本語 🙂'], {
    vocabularySize,
  });
  // As from a file.
  const json = JSON.parse(JSON.stringify(trained.tokenizerJson));
  const config = JSON.parse(JSON.stringify(trained.tokenizerConfig));
  return {
    ...trained,
    tokenizer: Tokenizer.fromJson(json, config, 'tokenizer.json'),
  };
}
