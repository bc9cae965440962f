import { Tokenizer as Library } from '@huggingface/tokenizers';
import { ArgumentError, AsaError, ConfigError } from '../errors';
import { splitsAtWords } from './pre-tokenizer';
import {
  type DecodeOptions,
  StreamDecoder,
  type StreamDecoderOptions,
} from './stream-decoder';
import { compileDecoder, type LeadingStrip } from './token-decoder';
import {
  checkMerges,
  parseTokenizerConfig,
  parseTokenizerFile,
  type TokenizerConfigFile,
  type TokenizerFile,
  tokensById,
} from './tokenizer-file';

/** How text becomes ids. */
export interface EncodeOptions {
  /** Add what the tokenizer puts around a text. Default true. */
  readonly addSpecialTokens?: boolean;
}

/**
 * A byte-pair tokenizer in the form of Hugging Face's `tokenizer.json`.
 * Encoding is `@huggingface/tokenizers`; decoding is ours, byte by byte, so
 * that a stream gives the same text as the whole.
 */
export class Tokenizer {
  /** Ids run from 0 to this, exclusive. */
  readonly vocabularySize: number;
  /** The start token's id, if the tokenizer has one. */
  readonly bosId: number | undefined;
  /** The end token's id, if the tokenizer has one. */
  readonly eosId: number | undefined;
  /** The unknown token's id, if the tokenizer has one. */
  readonly unkId: number | undefined;
  /** Jinja source that writes a conversation as text, if there is one. */
  readonly chatTemplate: string | undefined;
  /** Whether `encodeCorpus` may cut a text into words. */
  readonly splitsAtWords: boolean;

  readonly #library: Library;
  readonly #tokens: readonly string[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #bytes: readonly Uint8Array[];
  readonly #special: ReadonlySet<number>;
  readonly #strip: LeadingStrip;

  private constructor(
    file: TokenizerFile,
    config: TokenizerConfigFile,
    tokens: readonly string[],
    library: Library,
    path: string,
  ) {
    const added = file.added_tokens ?? [];
    const addedIds = new Set(added.map(({ id }) => id));
    const decoder = compileDecoder(file.decoder, path);
    this.#library = library;
    this.#tokens = tokens;
    this.#ids = new Map(tokens.map((token, id) => [token, id]));
    this.#bytes = tokens.map((token, id) =>
      decoder.bytes(token, addedIds.has(id)),
    );
    this.#special = new Set(
      added.filter(({ special }) => special).map(({ id }) => id),
    );
    this.#strip = decoder.strip;
    this.vocabularySize = tokens.length;
    this.bosId = this.#named('bos_token', config.bos_token, path);
    this.eosId = this.#named('eos_token', config.eos_token, path);
    const unknown = config.unk_token ?? file.model.unk_token;
    this.unkId = this.#named('unk_token', unknown, path);
    this.chatTemplate = defaultTemplate(config.chat_template);
    this.splitsAtWords = splitsAtWords(file);
  }

  /**
   * @param tokenizerJson a parsed `tokenizer.json`.
   * @param config a parsed `tokenizer_config.json`; `{}` if there is none.
   * @param path the file that errors name.
   * @param modelVocabularySize rows of the model's embedding, if known.
   * @throws ConfigError if a field has a wrong type, ids are double, missing or
   *   beyond the model's vocabulary, a merge makes no token, or a part is not
   *   supported.
   */
  static fromJson(
    tokenizerJson: unknown,
    config: unknown,
    path: string,
    modelVocabularySize?: number,
  ): Tokenizer {
    try {
      const file = parseTokenizerFile(tokenizerJson, path);
      const settings = parseTokenizerConfig(config, path);
      const tokens = tokensById(file, path, modelVocabularySize);
      checkMerges(file, path);
      const library = openLibrary(file);
      const tokenizer = new Tokenizer(file, settings, tokens, library, path);
      tokenizer.#checkTemplate(path);
      return tokenizer;
    } catch (error) {
      if (error instanceof AsaError) throw error;
      // The library's plain errors, and stacks that deep nesting overflows.
      const reason = error instanceof Error ? error.message : String(error);
      throw new ConfigError(path, undefined, reason, { cause: error });
    }
  }

  /**
   * The ids of a text. Of a lone surrogate, which no encoding holds, it keeps
   * U+FFFD.
   */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    const { ids } = this.#library.encode(text, {
      add_special_tokens: options.addSpecialTokens ?? true,
    });
    return Int32Array.from(ids);
  }

  /**
   * The text of ids, spaces and all: no clean-up.
   *
   * @throws ArgumentError if an id is not in the vocabulary.
   */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const stream = this.streamDecoder(options);
    let text = '';
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  /**
   * A decoder that takes ids one by one.
   *
   * @throws ArgumentError if an id of `after` is not in the vocabulary.
   */
  streamDecoder(options: StreamDecoderOptions = {}): StreamDecoder {
    return new StreamDecoder(this, this.#strip, options);
  }

  /**
   * The bytes of one token, perhaps a part of a UTF-8 character. At the start
   * of a text the decoder may also cut a space. Do not write into them.
   *
   * @throws ArgumentError if the id is not in the vocabulary.
   */
  tokenBytes(id: number): Uint8Array {
    const bytes = this.#bytes[id];
    if (bytes === undefined) {
      throw new ArgumentError(
        `tokenizer: an id must be an integer in [0, ${this.vocabularySize}), got ${id}`,
      );
    }
    return bytes;
  }

  /** The token as the vocabulary spells it, undefined outside of it. */
  token(id: number): string | undefined {
    return this.#tokens[id];
  }

  /** The id of a token as the vocabulary spells it. */
  idOf(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** Whether an id is a start, end, role or other special token. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  #named(field: string, token: string | null | undefined, path: string) {
    if (token === null || token === undefined) return undefined;
    const id = this.#ids.get(token);
    if (id !== undefined) return id;
    throw new ConfigError(
      path,
      field,
      `must be in the vocabulary, got ${JSON.stringify(token)}`,
    );
  }

  /** The post-processor may name tokens that the vocabulary does not have. */
  #checkTemplate(path: string): void {
    const { ids, tokens } = this.#library.encode('');
    for (const [i, token] of tokens.entries()) {
      if (this.#tokens[ids[i] ?? -1] === token) continue;
      throw new ConfigError(
        path,
        'post_processor',
        `must add tokens of the vocabulary, got ${JSON.stringify(token)}`,
      );
    }
  }
}

/** The library wants every part to be there, if only as null. */
function openLibrary(file: TokenizerFile): Library {
  const { normalizer, pre_tokenizer, post_processor, decoder } = file;
  return new Library(
    {
      ...file,
      normalizer: normalizer ?? null,
      pre_tokenizer: pre_tokenizer ?? null,
      post_processor: post_processor ?? null,
      decoder: decoder ?? null,
      added_tokens: file.added_tokens ?? [],
    },
    {},
  );
}

function defaultTemplate(
  template: TokenizerConfigFile['chat_template'],
): string | undefined {
  if (!Array.isArray(template)) return template ?? undefined;
  return template.find(({ name }) => name === 'default')?.template;
}
