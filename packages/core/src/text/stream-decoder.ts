import type { LeadingStrip } from './token-decoder';
import type { Tokenizer } from './tokenizer';

/** How ids become text. */
export interface DecodeOptions {
  /** Leave out start, end and role tokens. Default true. */
  readonly skipSpecialTokens?: boolean;
}

/** How a stream of ids becomes text. */
export interface StreamDecoderOptions extends DecodeOptions {
  /** The ids before the stream: their text is not written again. */
  readonly after?: Iterable<number>;
}

/**
 * Turns ids into text one by one. A character that is spread over tokens
 * comes out whole, with its last byte; bytes that are no UTF-8 come out as
 * U+FFFD. What the pushes and the end return, joined, is
 * `tokenizer.decode(ids)`.
 */
export class StreamDecoder {
  // A mark at the start of the text is a character like any other.
  readonly #utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  readonly #strip: LeadingStrip;
  #stripsLeft: number;

  /** @throws ArgumentError if an id of `after` is not in the vocabulary. */
  constructor(
    tokenizer: Tokenizer,
    strip: LeadingStrip,
    options: StreamDecoderOptions = {},
  ) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
    this.#strip = strip;
    this.#stripsLeft = strip.count;
    for (const id of options.after ?? []) this.push(id);
  }

  /**
   * Takes the next id and returns the text that it completes.
   *
   * @throws ArgumentError if the id is not in the vocabulary.
   */
  push(id: number): string {
    const bytes = this.#tokenizer.tokenBytes(id);
    if (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id)) return '';
    const text = this.#cut(this.#utf8.decode(bytes, { stream: true }));
    if (this.#strip.firstTokenOnly) this.#stripsLeft = 0;
    return text;
  }

  /** The ids are over: returns what an incomplete character leaves. */
  end(): string {
    return this.#cut(this.#utf8.decode());
  }

  #cut(text: string): string {
    let rest = text;
    while (this.#stripsLeft > 0 && rest !== '') {
      const leads = rest.startsWith(this.#strip.content);
      if (leads) rest = rest.slice(this.#strip.content.length);
      this.#stripsLeft = leads ? this.#stripsLeft - 1 : 0;
    }
    return rest;
  }
}
