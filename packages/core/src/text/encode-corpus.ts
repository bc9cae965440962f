import { ArgumentError } from '../errors';
import type { Tokenizer } from './tokenizer';

/** How far an encoding is. */
export interface EncodeCorpusProgress {
  readonly documents: number;
  /** UTF-16 units read. */
  readonly characters: number;
  readonly tokens: number;
}

/** How documents become one array of ids. */
export interface EncodeCorpusOptions {
  /** Called after each document and about every million characters. */
  readonly onProgress?: (progress: EncodeCorpusProgress) => void;
}

const REPORT_EVERY = 1 << 20;

/** Longer pieces hardly come twice. */
const MAX_CACHED_LENGTH = 32;
const MAX_CACHED_PIECES = 1 << 19;

/**
 * Encodes documents into one array: each as `tokenizer.encode` gives it, with
 * the end token after it, if the tokenizer has one and has not put it there.
 * Where the pre-tokenizer allows, words are looked up instead of encoded again.
 *
 * @returns Uint16Array up to 65,536 tokens, Int32Array beyond.
 * @throws ArgumentError if a document is not a string.
 */
export async function encodeCorpus(
  tokenizer: Tokenizer,
  documents: Iterable<string> | AsyncIterable<string>,
  options: EncodeCorpusOptions = {},
): Promise<Uint16Array | Int32Array> {
  const ids = new IdBuffer(tokenizer.vocabularySize);
  const encoder = new DocumentEncoder(tokenizer);
  let count = 0;
  let characters = 0;
  const report = () =>
    options.onProgress?.({ documents: count, characters, tokens: ids.length });
  for await (const text of documents) {
    checkDocument(text, count);
    let unreported = 0;
    for (const part of encoder.encode(text)) {
      ids.push(part.ids);
      characters += part.characters;
      unreported += part.characters;
      if (unreported < REPORT_EVERY) continue;
      unreported = 0;
      report();
    }
    count++;
    report();
  }
  return ids.take();
}

function checkDocument(text: unknown, index: number): void {
  if (typeof text === 'string') return;
  throw new ArgumentError(
    `encodeCorpus: document ${index} must be a string, got ${typeof text}`,
  );
}

/**
 * Cuts a text before each space that stands between a visible character and a
 * letter. See `splitsAtWords` for why the parts can be encoded alone.
 */
export function* wordPieces(text: string): Generator<string> {
  let start = 0;
  let space = text.indexOf(' ', 1);
  while (space !== -1) {
    if (isVisible(text, space - 1) && isLetter(text, space + 1)) {
      yield text.slice(start, space);
      start = space;
    }
    space = text.indexOf(' ', space + 1);
  }
  if (start < text.length) yield text.slice(start);
}

function isVisible(text: string, at: number): boolean {
  const unit = text.charCodeAt(at);
  if (unit < 0x7f) return unit > 0x20;
  return !/\p{White_Space}/u.test(text.charAt(at));
}

function isLetter(text: string, at: number): boolean {
  const unit = text.charCodeAt(at) | 0x20;
  return (unit >= 0x61 && unit <= 0x7a) || /\p{L}/u.test(text.charAt(at));
}

/** Ids of a part of a document, and how long the part is. */
interface Part {
  readonly ids: ArrayLike<number>;
  readonly characters: number;
}

/** Encodes documents in parts, and remembers the short parts. */
class DocumentEncoder {
  readonly #cache = new Map<string, Int32Array>();
  readonly #tokenizer: Tokenizer;
  readonly #prefix: Int32Array;
  readonly #suffix: Int32Array;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    const bare = tokenizer.encode('a', { addSpecialTokens: false });
    const whole = tokenizer.encode('a');
    const start = whole.indexOf(bare[0] ?? -1);
    this.#prefix = whole.slice(0, start);
    this.#suffix = withEnd(whole.slice(start + bare.length), tokenizer.eosId);
  }

  *encode(text: string): Generator<Part> {
    yield { ids: this.#prefix, characters: 0 };
    const pieces = this.#tokenizer.splitsAtWords ? wordPieces(text) : [text];
    for (const piece of pieces) {
      yield { ids: this.#piece(piece), characters: piece.length };
    }
    yield { ids: this.#suffix, characters: 0 };
  }

  #piece(piece: string): Int32Array {
    const known = this.#cache.get(piece);
    if (known !== undefined) return known;
    const ids = this.#tokenizer.encode(piece, { addSpecialTokens: false });
    if (piece.length <= MAX_CACHED_LENGTH) {
      if (this.#cache.size >= MAX_CACHED_PIECES) this.#cache.clear();
      this.#cache.set(piece, ids);
    }
    return ids;
  }
}

function withEnd(suffix: Int32Array, end: number | undefined): Int32Array {
  if (end === undefined || suffix.at(-1) === end) return suffix;
  return Int32Array.of(...suffix, end);
}

/** An array of ids that grows by doubling. */
class IdBuffer {
  length = 0;
  #ids: Uint16Array | Int32Array;

  constructor(vocabularySize: number) {
    const size = REPORT_EVERY;
    this.#ids =
      vocabularySize <= 0x10000 ? new Uint16Array(size) : new Int32Array(size);
  }

  push(ids: ArrayLike<number>): void {
    const end = this.length + ids.length;
    if (end > this.#ids.length) this.#grow(end);
    this.#ids.set(ids, this.length);
    this.length = end;
  }

  #grow(atLeast: number): void {
    const size = Math.max(atLeast, 2 * this.#ids.length);
    const grown =
      this.#ids instanceof Uint16Array
        ? new Uint16Array(size)
        : new Int32Array(size);
    grown.set(this.#ids);
    this.#ids = grown;
  }

  /** The ids alone, without the room to grow. */
  take(): Uint16Array | Int32Array {
    return this.#ids.slice(0, this.length);
  }
}
