import { fc, test } from '@fast-check/vitest';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import { describe, expect } from 'vitest';
import {
  encodeCorpus,
  SPECIAL_TOKENS,
  Tokenizer,
  trainBpe,
} from '../../packages/core/src/text';
import { learnMerges } from '../../packages/core/src/text/bpe-merges';
import { alphabetToBytes } from '../../packages/core/src/text/byte-alphabet';
import { preTokens } from '../../packages/core/src/text/pre-tokenizer';
import { readStories, STORIES, WHY } from '../unit/text/stories';
import { trainedTokenizer } from '../unit/text/trained';

const { tokenizer, tokenizerJson, tokenizerConfig } = trainedTokenizer(400);
const library = new Library(tokenizerJson, tokenizerConfig);
const bare = { addSpecialTokens: false };

/** Any text: all of Unicode, mixed with what the tokenizer has merges for. */
const anyText = fc
  .array(
    fc.oneof(
      fc.string({ unit: 'binary', maxLength: 8 }),
      fc.constantFrom(
        ...['the', ' quick', ' fox', '’s', "'ll", '.\n\n', ', ', '  ', '\r\n'],
        ...['\u0085', '\u00a0', '\u2028', '\ufeff', '12', ' 7', 'é', '🙂', '"'],
        ...['<s>', '<|user|>', '</', '\t', ' a', 'e\u0301', '日本', ' \n '],
      ),
    ),
    { maxLength: 30 },
  )
  .map((parts) => parts.join(''));

const byteTokens = new Map(
  Object.entries(tokenizerJson.model.vocab).map(([token, id]) => [id, token]),
);
const byteToken = (byte: number) =>
  byteTokens.get(SPECIAL_TOKENS.length + byte) ?? '';

/** The merges one after the other over each pre-token: no heap, no cache. */
function naiveEncode(text: string): number[] {
  const { vocab, merges } = tokenizerJson.model;
  const pairs = merges.map((merge) => merge.split(' '));
  const ids: number[] = [];
  for (const word of preTokens(text)) {
    const tokens = Array.from(new TextEncoder().encode(word), byteToken);
    for (const [left, right] of pairs) {
      for (let i = 0; i + 1 < tokens.length; i++) {
        if (tokens[i] === left && tokens[i + 1] === right) {
          tokens.splice(i, 2, `${left}${right}`);
        }
      }
    }
    ids.push(...tokens.map((token) => vocab[token] ?? -1));
  }
  return ids;
}

const withoutSpecial = anyText.filter(
  (text) => !SPECIAL_TOKENS.some((token) => text.includes(token)),
);

describe('a trained tokenizer', () => {
  test.prop([withoutSpecial], { numRuns: 500 })(
    'reads back to the ids of its own merges',
    (text) => {
      const ids = naiveEncode(text);
      expect(library.encode(text, { add_special_tokens: false }).ids).toEqual(
        ids,
      );
      expect([...tokenizer.encode(text, bare)]).toEqual(ids);
    },
  );

  test.prop([anyText], { numRuns: 1_000 })(
    'gives any text back from its ids',
    (text) => {
      const ids = tokenizer.encode(text, bare);
      const all = { skipSpecialTokens: false };
      expect(tokenizer.decode(ids, all)).toBe(text);
      if (ids.length > 0) expect(library.decode([...ids])).toBe(text);
    },
  );

  test.prop([fc.array(anyText, { maxLength: 4 })], { numRuns: 500 })(
    'encodes a corpus in pieces as it encodes whole documents',
    async (documents) => {
      const ids = await encodeCorpus(tokenizer, documents);
      const want = documents.flatMap((text) => [...tokenizer.encode(text), 1]);
      expect([...ids]).toEqual(want);
    },
  );
});

/** Recounts all pairs at each step, in plain order. */
function naiveMerges(words: string[][], count: number): string[] {
  const merges: string[] = [];
  const order: string[] = [
    ...new Array<string>(SPECIAL_TOKENS.length).fill(''),
    ...Array.from({ length: 256 }, (_, byte) => byteToken(byte)),
  ];
  while (merges.length < count) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 1; i < word.length; i++) {
        const pair = `${word[i - 1]} ${word[i]}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const id = (pair: string, side: 0 | 1) =>
      order.indexOf(pair.split(' ')[side] ?? '');
    const best = [...counts.keys()]
      .filter((pair) => !order.includes(pair.replace(' ', '')))
      .sort(
        (a, b) =>
          (counts.get(b) ?? 0) - (counts.get(a) ?? 0) ||
          id(a, 0) - id(b, 0) ||
          id(a, 1) - id(b, 1),
      )[0];
    if (best === undefined) break;
    merges.push(best);
    order.push(best.replace(' ', ''));
    const [left, right] = best.split(' ');
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) {
          word.splice(i, 2, `${left}${right}`);
        }
      }
    }
  }
  return merges;
}

test.prop(
  [fc.string({ unit: fc.constantFrom('a', 'b', 'c', ' '), maxLength: 120 })],
  { numRuns: 500 },
)('learnMerges merges what recounting everything merges', (text) => {
  const counts = new Map<string, number>();
  for (const word of preTokens(text)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const tokens = Array.from({ length: 263 }, (_, id) =>
    id < 7 ? `<${id}>` : (byteTokens.get(id) ?? ''),
  );
  const words = Array.from(counts, ([word, count]) => ({
    ids: Array.from(new TextEncoder().encode(word), (byte) => byte + 7),
    count,
  }));
  const learned = learnMerges(words, tokens, 283, () => {});
  const plain = [...preTokens(text)].map((word) =>
    Array.from(new TextEncoder().encode(word), byteToken),
  );
  expect(
    learned.map(([left, right]) => `${tokens[left]} ${tokens[right]}`),
  ).toEqual(naiveMerges(plain, 20));
});

test.prop([anyText], { numRuns: 500 })(
  'preTokens cut a text without loss',
  (text) => {
    expect([...preTokens(text)].join('')).toBe(text);
  },
);

const streams: [string, Tokenizer][] = [['byte-level', tokenizer]];
if (STORIES) {
  const json = readStories('tokenizer.json');
  const config = readStories('tokenizer_config.json');
  streams.push(['byte-fallback', Tokenizer.fromJson(json, config, 'stories')]);
}

describe.each(streams)(`a stream of %s ids${WHY}`, (_, each) => {
  const anyIds = fc.array(fc.nat(each.vocabularySize - 1), { maxLength: 40 });

  test.prop([anyIds, fc.boolean()], { numRuns: 1_000 })(
    'joins to the text of all bytes, whatever the ids',
    (ids, skipSpecialTokens) => {
      const stream = each.streamDecoder({ skipSpecialTokens });
      const text = ids.map((id) => stream.push(id)).join('') + stream.end();
      const bytes = ids
        .filter((id) => !(skipSpecialTokens && each.isSpecial(id)))
        .flatMap((id) => [...each.tokenBytes(id)]);
      const whole = new TextDecoder('utf-8', { ignoreBOM: true }).decode(
        Uint8Array.from(bytes),
      );
      const leads = each !== tokenizer && whole.startsWith(' ');
      expect(text).toBe(leads ? whole.slice(1) : whole);
      expect(each.decode(ids, { skipSpecialTokens })).toBe(text);
    },
  );

  // Llama puts a space after a special token, and reads ▁ as a space.
  const plainText = withoutSpecial.filter((text) => !text.includes('▁'));

  test.prop([plainText], { numRuns: 300 })(
    'shows no character before it is whole',
    (text) => {
      const ids = each.encode(text, bare);
      const stream = each.streamDecoder({ skipSpecialTokens: false });
      let shown = '';
      for (const id of ids) {
        shown += stream.push(id);
        expect(text.startsWith(shown)).toBe(true);
      }
      expect(stream.end()).toBe('');
      expect(shown).toBe(text);
    },
  );
});

test('the byte alphabet has 256 characters', () => {
  const { vocab } = trainBpe(['ab ab'], { vocabularySize: 264 }).tokenizerJson
    .model;
  const bytes = Object.keys(vocab)
    .filter((token) => (vocab[token] ?? 0) >= 7 && (vocab[token] ?? 0) < 263)
    .map((token) => alphabetToBytes(token)?.[0]);
  expect(new Set(bytes).size).toBe(256);
});
