import type { AddedToken, TokenizerFile } from './tokenizer-file';

/**
 * How text is cut before pairs are merged: contractions, words with the space
 * before them, single digits (so that every number is spelled alike),
 * punctuation with the line ends after it, and white space.
 *
 * In the words of `tokenizer.json`, where `\s` is Unicode's White_Space.
 */
const PRE_TOKEN_PATTERN =
  "['’](?:[sdmt]|ll|ve|re)| ?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** The same pattern in JavaScript, where `\s` is another set. */
const PRE_TOKEN = new RegExp(
  PRE_TOKEN_PATTERN.replaceAll('\\s', '\\p{White_Space}').replaceAll(
    '\\S',
    '\\P{White_Space}',
  ),
  'gu',
);

/** The pre-tokens of `text`, in order; joined, they are the text. */
export function* preTokens(text: string): Generator<string> {
  for (const [token] of text.matchAll(PRE_TOKEN)) yield token;
}

/** The `pre_tokenizer` of a `tokenizer.json` that cuts like `preTokens`. */
export const PRE_TOKENIZER = {
  type: 'Sequence',
  pretokenizers: [
    {
      type: 'Split',
      pattern: { Regex: PRE_TOKEN_PATTERN },
      behavior: 'Isolated',
      invert: false,
    },
    {
      type: 'ByteLevel',
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: false,
    },
  ],
} as const;

/**
 * Whether a text may be cut before a space that stands between a visible
 * character and a letter, and its parts encoded one by one. That holds for
 * {@link PRE_TOKENIZER} and for GPT-2's: no pre-token of theirs goes across
 * such a place or looks beyond it. Normalizers may join the parts, and added
 * tokens may hold or swallow a space.
 */
export function splitsAtWords(file: TokenizerFile): boolean {
  const plain = ({ content, lstrip, rstrip, single_word }: AddedToken) =>
    !(lstrip || rstrip || single_word || /\p{White_Space}/u.test(content));
  return (
    (file.normalizer ?? null) === null &&
    (file.added_tokens ?? []).every(plain) &&
    (isOurs(file.pre_tokenizer) || isGpt2(file.pre_tokenizer))
  );
}

function isOurs(preTokenizer: TokenizerFile['pre_tokenizer']): boolean {
  return JSON.stringify(preTokenizer) === JSON.stringify(PRE_TOKENIZER);
}

function isGpt2(preTokenizer: TokenizerFile['pre_tokenizer']): boolean {
  return (
    preTokenizer?.type === 'ByteLevel' &&
    preTokenizer.add_prefix_space === false &&
    (preTokenizer.use_regex ?? true) === true
  );
}
