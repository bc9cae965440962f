import { ArgumentError } from '../errors';
import { learnMerges, type Word } from './bpe-merges';
import { BYTE_CHARACTERS } from './byte-alphabet';
import { PRE_TOKENIZER, preTokens } from './pre-tokenizer';

/** The special tokens of a trained tokenizer; the index is the id. */
export const SPECIAL_TOKENS = [
  '<s>',
  '</s>',
  '<pad>',
  '<|system|>',
  '<|user|>',
  '<|assistant|>',
  '<|end|>',
] as const;

/** Ids below this are special tokens and single bytes. */
const FIRST_MERGE = SPECIAL_TOKENS.length + 256;
const MAX_VOCABULARY = 65_536;

/** Longer pre-tokens are counted in parts: rows of dashes, unspaced scripts. */
const MAX_WORD_BYTES = 128;

const CHAT_TEMPLATE = `{{ bos_token }}{% for message in messages %}\
{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('a role must be system, user or assistant, got ' + message['role']) }}\
{% endif %}\
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}`;

/** How far a training is: first it counts words, then it merges. */
export interface TrainBpeProgress {
  readonly stage: 'count' | 'merge';
  /** Characters that are counted, or merges that are learned. */
  readonly done: number;
  /** Merges to learn; unknown while counting. */
  readonly total?: number;
}

/** What to train. */
export interface TrainBpeOptions {
  /** Special tokens, 256 bytes and merges together: 264 to 65,536. */
  readonly vocabularySize: number;
  readonly onProgress?: (progress: TrainBpeProgress) => void;
}

/** A tokenizer as files: two objects to write as JSON. */
export interface TrainedTokenizer {
  readonly tokenizerJson: ReturnType<typeof tokenizerFile>;
  readonly tokenizerConfig: ReturnType<typeof configFile>;
}

/**
 * Trains a byte-level byte-pair vocabulary: any text has ids and comes back
 * from them. The pair that occurs most often is merged first; among equals,
 * the one with the smaller left id, then the smaller right id. A pair that
 * would spell an existing token is passed over, so a token has one origin. The
 * same text gives the same files.
 *
 * Source: Sennrich et al. 2016, "Neural machine translation of rare words with
 * subword units"; byte level after Radford et al. 2019.
 *
 * @throws ArgumentError if the size is out of range or the text too poor for
 *   that many tokens.
 */
export function trainBpe(
  texts: Iterable<string>,
  options: TrainBpeOptions,
): TrainedTokenizer {
  const { vocabularySize, onProgress } = options;
  if (
    !Number.isInteger(vocabularySize) ||
    vocabularySize <= FIRST_MERGE ||
    vocabularySize > MAX_VOCABULARY
  ) {
    throw new ArgumentError(
      `trainBpe: vocabularySize must be an integer from ${FIRST_MERGE + 1} to ${MAX_VOCABULARY}, got ${vocabularySize}`,
    );
  }
  const words = countWords(texts, onProgress);
  const tokens = [...SPECIAL_TOKENS, ...BYTE_CHARACTERS];
  const merges = learnMerges(words, tokens, vocabularySize, (done, total) =>
    onProgress?.({ stage: 'merge', done, total }),
  );
  if (tokens.length < vocabularySize) {
    throw new ArgumentError(
      `trainBpe: the text must have pairs for ${vocabularySize} tokens, got ${tokens.length}: give more text or ask for fewer`,
    );
  }
  return {
    tokenizerJson: tokenizerFile(tokens, merges),
    tokenizerConfig: configFile(),
  };
}

function countWords(
  texts: Iterable<string>,
  onProgress: TrainBpeOptions['onProgress'],
): Word[] {
  const counts = new Map<string, number>();
  let done = 0;
  for (const text of texts) {
    for (const word of preTokens(text)) {
      counts.set(word, (counts.get(word) ?? 0) + 1);
    }
    done += text.length;
    onProgress?.({ stage: 'count', done });
  }
  const utf8 = new TextEncoder();
  const words: Word[] = [];
  for (const [word, count] of counts) {
    const bytes = utf8.encode(word);
    for (let at = 0; at < bytes.length; at += MAX_WORD_BYTES) {
      const part = bytes.subarray(at, at + MAX_WORD_BYTES);
      const ids = Array.from(part, (byte) => SPECIAL_TOKENS.length + byte);
      words.push({ ids, count });
    }
  }
  return words;
}

function tokenizerFile(
  tokens: readonly string[],
  merges: readonly (readonly [number, number])[],
) {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL_TOKENS.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: PRE_TOKENIZER,
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { SpecialToken: { id: '<s>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
      ],
      pair: [
        { SpecialToken: { id: '<s>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
        { Sequence: { id: 'B', type_id: 1 } },
      ],
      special_tokens: { '<s>': { id: '<s>', ids: [0], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'ByteLevel',
      add_prefix_space: true,
      trim_offsets: true,
      use_regex: true,
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: merges.map(([left, right]) => `${tokens[left]} ${tokens[right]}`),
    },
  };
}

function configFile() {
  return {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: '<s>',
    eos_token: '</s>',
    pad_token: '<pad>',
    add_bos_token: true,
    add_eos_token: false,
    clean_up_tokenization_spaces: false,
    chat_template: CHAT_TEMPLATE,
  };
}
