import { Tokenizer as Library } from '@huggingface/tokenizers';
import { describe, expect, it } from 'vitest';
import { ArgumentError, ConfigError } from '../../../packages/core/src/errors';
import { Tokenizer } from '../../../packages/core/src/text';
import { readStories, STORIES, WHY } from './stories';
import { trainedTokenizer } from './trained';

type Json = ReturnType<typeof smallFile>;

/** `<unk> a b ab` and the bytes of é, as Llama's tokenizers are laid out. */
function smallFile() {
  return {
    added_tokens: [{ id: 0, content: '<unk>', special: true }] as unknown[],
    normalizer: null as unknown,
    pre_tokenizer: null as unknown,
    post_processor: null as unknown,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    } as unknown,
    model: {
      type: 'BPE',
      unk_token: '<unk>' as unknown,
      byte_fallback: true,
      vocab: {
        '<unk>': 0,
        a: 1,
        b: 2,
        ab: 3,
        '<0xC3>': 4,
        '<0xA9>': 5,
        '▁': 6,
        '▁▁': 7,
      } as Record<string, unknown>,
      merges: ['a b', ['▁', '▁']] as unknown,
    } as Record<string, unknown>,
  };
}

const open = (json: unknown, config: unknown = {}, size?: number) =>
  Tokenizer.fromJson(json, config, 'dir/tokenizer.json', size);

describe.skipIf(!STORIES)(`stories260k tokenizer${WHY}`, () => {
  const load = () =>
    Tokenizer.fromJson(
      readStories('tokenizer.json'),
      readStories('tokenizer_config.json'),
      'tokenizer.json',
      512,
    );

  it('encodes the known text to the known ids', () => {
    const tokenizer = load();
    const ids = tokenizer.encode('Once upon a time');
    expect([...ids]).toEqual([1, 403, 407, 261, 378]);
    expect(ids).toBeInstanceOf(Int32Array);
    const bare = { addSpecialTokens: false };
    expect([...tokenizer.encode('Once upon a time', bare)]).toEqual([
      403, 407, 261, 378,
    ]);
    expect(tokenizer.decode(ids)).toBe('Once upon a time');
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(
      '<s> Once upon a time',
    );
    expect(tokenizer.vocabularySize).toBe(512);
    expect([tokenizer.bosId, tokenizer.eosId, tokenizer.unkId]).toEqual([
      1, 2, 0,
    ]);
    expect(tokenizer.splitsAtWords).toBe(false);
  });

  it('decodes as the library does', () => {
    const tokenizer = load();
    const library = new Library(
      readStories('tokenizer.json') as object,
      readStories('tokenizer_config.json') as object,
    );
    for (const text of ['  two spaces', 'é 日本 🙂!', 'One\n\nday', ' <s>x']) {
      const ids = tokenizer.encode(text);
      expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(
        library.decode([...ids], { clean_up_tokenization_spaces: false }),
      );
    }
  });
});

describe('tokenBytes', () => {
  it('gives the byte of a fallback token and the space of a metaspace', () => {
    const tokenizer = open(smallFile());
    expect([...tokenizer.tokenBytes(4)]).toEqual([0xc3]);
    expect([...tokenizer.tokenBytes(7)]).toEqual([0x20, 0x20]);
    expect(tokenizer.decode([4, 5])).toBe('é');
  });

  it('reads the byte alphabet, but not in added tokens', () => {
    const json = smallFile();
    json.decoder = { type: 'ByteLevel' };
    json.model.vocab = { '<unk>': 0, Ġ: 1, Ã: 2, '©': 3, Ċ: 4, 日: 5 };
    json.model.merges = [];
    json.added_tokens.push({ id: 6, content: 'Ġ!', special: false });
    const tokenizer = open(json);
    expect([1, 2, 3, 4].map((id) => tokenizer.tokenBytes(id)[0])).toEqual([
      0x20, 0xc3, 0xa9, 0x0a,
    ]);
    expect(tokenizer.decode([5, 6])).toBe('日Ġ!');
  });

  it('refuses an id outside of the vocabulary', () => {
    const tokenizer = open(smallFile());
    for (const id of [8, -1, 1.5, Number.NaN]) {
      expect(() => tokenizer.tokenBytes(id)).toThrow(ArgumentError);
      expect(() => tokenizer.decode([id])).toThrow(`[0, 8), got ${id}`);
    }
  });
});

describe('StreamDecoder', () => {
  it('holds back a character until its last byte', () => {
    const stream = open(smallFile()).streamDecoder();
    expect([4, 5, 1].map((id) => stream.push(id))).toEqual(['', 'é', 'a']);
    expect(stream.end()).toBe('');
  });

  it('ends an incomplete character with U+FFFD', () => {
    const stream = open(smallFile()).streamDecoder();
    expect(stream.push(4)).toBe('');
    expect(stream.end()).toBe('\uFFFD');
    expect(open(smallFile()).decode([4, 1])).toBe('\uFFFDa');
  });

  it('cuts one space at the very beginning, and none after a prompt', () => {
    const tokenizer = open(smallFile());
    expect(tokenizer.decode([7, 1, 6, 2])).toBe(' a b');
    const stream = tokenizer.streamDecoder({ after: [1] });
    expect(stream.push(6) + stream.push(2)).toBe(' b');
  });

  it('cuts the space of a Metaspace decoder from the first token alone', () => {
    const json = smallFile();
    json.decoder = { type: 'Metaspace', replacement: '▁' };
    expect(open(json).decode([6, 6, 1])).toBe(' a');
    json.decoder = { type: 'Metaspace', prepend_scheme: 'never' };
    expect(open(json).decode([6, 6, 1])).toBe('  a');
  });

  it('leaves out special tokens unless asked', () => {
    const tokenizer = open(smallFile());
    expect(tokenizer.decode([0, 1])).toBe('a');
    expect(tokenizer.decode([0, 1], { skipSpecialTokens: false })).toBe(
      '<unk>a',
    );
  });
});

describe('Tokenizer.fromJson refuses', () => {
  const cases: [string, (json: Json) => void, RegExp][] = [
    ['a missing model', (j) => Reflect.deleteProperty(j, 'model'), /: model: /],
    ['another model', (j) => (j.model.type = 'Unigram'), /only BPE/],
    ['a list as vocabulary', (j) => (j.model.vocab = []), /model\.vocab/],
    ['merges of numbers', (j) => (j.model.merges = [1]), /model\.merges\.0/],
    ['a merge of three', (j) => (j.model.merges = ['a b a']), /merges\[0\]/],
    ['a merge without token', (j) => (j.model.merges = ['b a']), /"b a"/],
    [
      'an inherited name in a merge',
      (j) => (j.model.merges = ['valueOf a']),
      /merges\[0\]/,
    ],
    ['a prefix', (j) => (j.model.continuing_subword_prefix = '##'), /prefix/],
    ['an unknown unk', (j) => (j.model.unk_token = '<none>'), /unk_token/],
    ['an unknown decoder', (j) => (j.decoder = { type: 'CTC' }), /decoder/],
    ['no decoder', (j) => (j.decoder = null), /decoder/],
    [
      'Strip before Fuse',
      (j) => (j.decoder = { type: 'Strip', content: ' ', start: 1 }),
      /Strip must come after Fuse/,
    ],
    [
      'Replace after Fuse',
      (j) => {
        const replace = {
          type: 'Replace',
          pattern: { String: 'a' },
          content: '',
        };
        j.decoder = { type: 'Sequence', decoders: [{ type: 'Fuse' }, replace] };
      },
      /Replace must come before Fuse/,
    ],
    [
      'an unknown pre-tokenizer',
      (j) => (j.pre_tokenizer = { type: 'Nope' }),
      /Nope/,
    ],
    [
      'a pattern that is no pattern',
      (j) => {
        j.pre_tokenizer = { type: 'Split', pattern: { Regex: '(' } };
      },
      /tokenizer\.json: /,
    ],
    [
      'a post-processor with a token of its own',
      (j) => {
        j.post_processor = {
          type: 'TemplateProcessing',
          single: [{ SpecialToken: { id: '<bos>', type_id: 0 } }],
          pair: [],
        };
      },
      /post_processor: .*<bos>/,
    ],
  ];
  it.each(cases)('%s', (_, change, message) => {
    const json = smallFile();
    change(json);
    expect(() => open(json)).toThrow(ConfigError);
    expect(() => open(json)).toThrow(message);
  });

  const ids: [string, unknown, RegExp][] = [
    ['a fraction', 1.5, /from 0 on, got 1.5/],
    ['a negative id', -1, /from 0 on, got -1/],
    ['a string', '1', /from 0 on, got "1"/],
    ['null', null, /from 0 on, got null/],
    ['an id that is taken', 2, /id 2 is already that of/],
    ['a hole', 9, /no token has id 8 of 9/],
    ['an id beyond 2^53', 1e300, /from 0 on/],
  ];
  it.each(ids)('%s as id', (_, id, message) => {
    const json = smallFile();
    json.model.vocab = { ...(json.model.vocab as object), z: id };
    expect(() => open(json)).toThrow(ConfigError);
    expect(() => open(json)).toThrow(message);
  });

  it('ids beyond the model', () => {
    expect(open(smallFile(), {}, 8).vocabularySize).toBe(8);
    expect(() => open(smallFile(), {}, 7)).toThrow(
      /below the model's 7 tokens, got 7/,
    );
  });

  it('an added token with a second id', () => {
    const json = smallFile();
    json.added_tokens.push({ id: 8, content: 'a' });
    expect(() => open(json)).toThrow(/"a" must have its id of model.vocab, 1/);
  });

  it('a start token that is no token, and a config that is no object', () => {
    expect(() => open(smallFile(), { bos_token: '<s>' })).toThrow(/bos_token/);
    expect(() => open(smallFile(), { eos_token: 7 })).toThrow(/eos_token/);
    for (const config of [null, [], 'x']) {
      expect(() => open(smallFile(), config)).toThrow(ConfigError);
    }
    expect(open(smallFile(), { bos_token: { content: 'a' } }).bosId).toBe(1);
  });

  it('anything that is no object', () => {
    for (const json of [null, 1, 'x', [], {}, { model: null }]) {
      expect(() => open(json)).toThrow(ConfigError);
    }
  });

  it('parts that are nested too deep', () => {
    const parts = {
      decoder: 'decoders',
      pre_tokenizer: 'pretokenizers',
      normalizer: 'normalizers',
    } as const;
    for (const [part, list] of Object.entries(parts)) {
      const opening = `{"type":"Sequence","${list}":[`.repeat(20_000);
      const deep = JSON.parse(`${opening}${']}'.repeat(20_000)}`);
      const json = { ...smallFile(), [part]: deep };
      expect(() => open(json), part).toThrow(ConfigError);
    }
  });
});

describe('names that objects inherit', () => {
  it('are tokens like others', () => {
    const json = smallFile();
    json.model.vocab = JSON.parse(
      '{"<unk>":0,"__proto__":1,"constructor":2,"a":3}',
    );
    json.model.merges = [];
    const tokenizer = open(json);
    expect(tokenizer.decode([1, 2, 3])).toBe('__proto__constructora');
    expect(tokenizer.idOf('toString')).toBeUndefined();
  });
});

describe('chatTemplate', () => {
  it('is the default one of several', () => {
    const chat_template = [
      { name: 'tools', template: 't' },
      { name: 'default', template: 'd' },
    ];
    expect(open(smallFile(), { chat_template }).chatTemplate).toBe('d');
    expect(open(smallFile(), {}).chatTemplate).toBeUndefined();
    expect(trainedTokenizer().tokenizer.chatTemplate).toContain('<|end|>');
  });
});
