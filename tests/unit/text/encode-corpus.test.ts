import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../../packages/core/src/errors';
import { encodeCorpus, Tokenizer } from '../../../packages/core/src/text';
import { wordPieces } from '../../../packages/core/src/text/encode-corpus';
import { readStories, STORIES, WHY } from './stories';
import { sampleText, trainedTokenizer } from './trained';

describe('encodeCorpus', () => {
  it('gives the ids of the whole text, with start and end', async () => {
    const { tokenizer } = trainedTokenizer();
    expect(tokenizer.splitsAtWords).toBe(true);
    const documents = [sampleText(), '', 'a b'];
    const ids = await encodeCorpus(tokenizer, documents);
    const want = documents.flatMap((text) => [...tokenizer.encode(text), 1]);
    expect(ids).toBeInstanceOf(Uint16Array);
    expect([...ids]).toEqual(want);
  });

  it('reads documents as they come and says how far it is', async () => {
    const { tokenizer } = trainedTokenizer();
    async function* documents() {
      yield 'one two';
      yield 'three';
    }
    const seen: unknown[] = [];
    const ids = await encodeCorpus(tokenizer, documents(), {
      onProgress: (progress) => seen.push(progress),
    });
    const first = tokenizer.encode('one two').length + 1;
    expect(seen).toEqual([
      { documents: 1, characters: 7, tokens: first },
      { documents: 2, characters: 12, tokens: ids.length },
    ]);
  });

  it('cuts between a visible character and a space before a letter', () => {
    const text = ' a b, c\n d  e 1 é\u00a0 f';
    expect([...wordPieces(text)]).toEqual([
      ' a',
      ' b,',
      ' c\n d  e 1',
      ' é\u00a0 f',
    ]);
  });

  it.skipIf(!STORIES)(`encodes whole what it may not cut${WHY}`, async () => {
    const tokenizer = Tokenizer.fromJson(
      readStories('tokenizer.json'),
      readStories('tokenizer_config.json'),
      'tokenizer.json',
    );
    const ids = await encodeCorpus(tokenizer, ['Once upon a time']);
    expect([...ids]).toEqual([1, 403, 407, 261, 378, 2]);
  });

  it('cuts for GPT-2, and not where a token or normalizer joins', async () => {
    const base = JSON.parse(JSON.stringify(trainedTokenizer().tokenizerJson));
    const open = (change: object) =>
      Tokenizer.fromJson({ ...base, ...change }, {}, 'tokenizer.json');
    const gpt2 = open({
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false },
    });
    expect(gpt2.splitsAtWords).toBe(true);
    const text = sampleText();
    expect([...(await encodeCorpus(gpt2, [text]))]).toEqual([
      ...gpt2.encode(text),
    ]);
    const added_tokens = [
      ...base.added_tokens.slice(0, -1),
      { ...base.added_tokens.at(-1), lstrip: true },
    ];
    expect(open({ added_tokens }).splitsAtWords).toBe(false);
    expect(open({ normalizer: { type: 'NFC' } }).splitsAtWords).toBe(false);
    expect(
      open({ pre_tokenizer: { type: 'ByteLevel', add_prefix_space: true } })
        .splitsAtWords,
    ).toBe(false);
  });

  it('refuses a document that is no string', async () => {
    const { tokenizer } = trainedTokenizer();
    const documents = ['a', 7 as unknown as string];
    await expect(encodeCorpus(tokenizer, documents)).rejects.toThrow(
      ArgumentError,
    );
  });
});
