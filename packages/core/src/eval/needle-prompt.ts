import { ArgumentError } from '../errors';
import type { Random } from '../random';
import type { Tokenizer } from '../text/tokenizer';
import {
  introduction,
  type Needle,
  needleSentence,
  noise,
  question,
} from './needle-forms';

/** Sentences or lines to hide a needle among; each brings its own white space. */
export type Haystack = readonly string[];

/** As many lines of noise as asked for. */
export const noiseHaystack = (count: number): Haystack =>
  Array.from({ length: count }, () => `${noise}\n`);

/**
 * The sentences of a text, its white space made single spaces, from a random
 * one on and around: a short text comes again and again.
 */
export function textHaystack(text: string, random: Random): Haystack {
  const sentences = text
    .replace(/\s+/g, ' ')
    .trim()
    .split(/(?<=[.!?]["'”’)]*) (?=["'“‘(]*\p{Lu})/u)
    .filter((sentence) => sentence !== '')
    .map((sentence) => `${sentence} `);
  const start = random.below(Math.max(1, sentences.length));
  return [...sentences.slice(start), ...sentences.slice(0, start)];
}

/**
 * Writes prompts as ids. What stands before and behind the needle comes again
 * and again, so it is encoded in parts where the tokenizer allows.
 */
export class NeedlePrompts {
  private readonly known = new Map<string, Int32Array>();
  private readonly start: readonly number[];

  constructor(private readonly tokenizer: Tokenizer) {
    const { bosId } = tokenizer;
    this.start = bosId === undefined ? [] : [bosId];
  }

  /**
   * The most sentences that fit into `length` tokens with everything else.
   * @throws ArgumentError when not even one does.
   */
  fit(haystack: Haystack, needle: Needle, length: number): number {
    // What stands first or last may have a token more or less than elsewhere.
    const isWithin = (count: number) =>
      [0, 0.5, 1].every(
        (depth) =>
          this.encode(haystack, needle, { count, depth }).length <= length,
      );
    if (!isWithin(1)) {
      throw new ArgumentError(
        `needle: the prompt must fit into ${length} tokens with a sentence of the haystack, got a longer one`,
      );
    }
    // Between what fits and what does not: halve the distance.
    let [least, most] = [1, 2];
    while (isWithin(most)) [least, most] = [most, 2 * most];
    while (most - least > 1) {
      const middle = (least + most) >> 1;
      if (isWithin(middle)) least = middle;
      else most = middle;
    }
    return least;
  }

  /**
   * @param count sentences of the haystack; it is repeated where it is shorter.
   * @param depth the share of them that stands before the needle.
   */
  encode(
    haystack: Haystack,
    needle: Needle,
    { count, depth }: { readonly count: number; readonly depth: number },
  ): Int32Array {
    const before = Math.round(count * depth);
    const separator = haystack[0]?.endsWith('\n') ? '\n' : ' ';
    const hay = Array.from(
      { length: count },
      (_, i) => haystack[i % haystack.length] ?? '',
    );
    const sentences = [
      ...hay.slice(0, before),
      `${needleSentence(needle)}${separator}`,
      ...hay.slice(before),
    ];
    const last = sentences.pop() ?? '';
    return this.join([
      `${introduction(needle.kind)}\n`,
      ...sentences,
      `${last.trimEnd()}\n${question(needle)}`,
    ]);
  }

  private join(parts: readonly string[]): Int32Array {
    const pieces = this.tokenizer.splitsAtWords
      ? wholeWords(parts).map((part) => this.piece(part))
      : [this.ids(parts.join(''))];
    const length = pieces.reduce((sum, ids) => sum + ids.length, 0);
    const all = new Int32Array(this.start.length + length);
    all.set(this.start);
    let at = this.start.length;
    for (const ids of pieces) {
      all.set(ids, at);
      at += ids.length;
    }
    return all;
  }

  private piece(text: string): Int32Array {
    const known = this.known.get(text) ?? this.ids(text);
    this.known.set(text, known);
    return known;
  }

  private ids(text: string): Int32Array {
    return this.tokenizer.encode(text, { addSpecialTokens: false });
  }
}

/** The parts with the space at the end of each moved to the next one's start. */
function wholeWords(parts: readonly string[]): string[] {
  return parts.map((part, i) => {
    const lead = parts[i - 1]?.endsWith(' ') ? ' ' : '';
    return lead + (part.endsWith(' ') ? part.slice(0, -1) : part);
  });
}
