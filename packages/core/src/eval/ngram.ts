import { ArgumentError } from '../errors';

const bytes = 256;

/**
 * A model of bytes given the two before them: interpolated Kneser-Ney, one
 * discount an order. What a trained model has to beat.
 * Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for
 * Language Modeling, 1999, equations 22 and 24.
 */
export class ByteTrigram {
  /** Lower orders count in how many contexts a byte occurs, not how often. */
  private constructor(
    private readonly unigrams: Order,
    private readonly bigrams: Order,
    private readonly trigrams: Order,
  ) {}

  /**
   * Counts the trigrams of texts, each by itself.
   * @throws ArgumentError when no text has three bytes.
   */
  static train(texts: Iterable<Uint8Array>): ByteTrigram {
    const counts = new Uint32Array(bytes ** 3);
    for (const text of texts) {
      for (let i = 2; i < text.length; i++) {
        const at = context(text, i) * bytes + byte(text, i);
        counts[at] = (counts[at] ?? 0) + 1;
      }
    }
    const trigrams = new Order(counts);
    if (!(trigrams.total > 0)) {
      throw new ArgumentError('ngram: a text must have at least 3 bytes');
    }
    const bigrams = new Order(continuations(counts));
    return new ByteTrigram(
      new Order(continuations(bigrams.counts)),
      bigrams,
      trigrams,
    );
  }

  /** P(`c` behind the bytes `a`, `b`); over all `c` they sum to 1. */
  probability(a: number, b: number, c: number): number {
    return this.trigrams.probability(
      a * bytes + b,
      c,
      this.bigrams.probability(
        b,
        c,
        this.unigrams.probability(0, c, 1 / bytes),
      ),
    );
  }

  /** Bits a byte of a text: of all bytes but the first two. */
  bitsPerByte(text: Uint8Array): number {
    if (text.length < 3) {
      throw new ArgumentError(
        `ngram: a text must have at least 3 bytes, got ${text.length}`,
      );
    }
    let bits = 0;
    for (let i = 2; i < text.length; i++) {
      const c = byte(text, i);
      bits -= Math.log2(
        this.probability(byte(text, i - 2), byte(text, i - 1), c),
      );
    }
    return bits / (text.length - 2);
  }
}

/** Counts of bytes behind each context, `[contexts, 256]`. */
class Order {
  /** Of each context: all its counts, and how many are not 0. */
  private readonly sums: Float64Array;
  private readonly kinds: Uint32Array;
  private readonly discount: number;

  constructor(readonly counts: Uint32Array) {
    this.sums = new Float64Array(counts.length / bytes);
    this.kinds = new Uint32Array(counts.length / bytes);
    let [once, twice] = [0, 0];
    for (let i = 0; i < counts.length; i++) {
      const count = counts[i] ?? 0;
      if (count === 0) continue;
      const at = Math.floor(i / bytes);
      this.sums[at] = (this.sums[at] ?? 0) + count;
      this.kinds[at] = (this.kinds[at] ?? 0) + 1;
      if (count === 1) once += 1;
      if (count === 2) twice += 1;
    }
    // D = n1 / (n1 + 2 n2); any share below 1 serves where no count is 1.
    this.discount = once > 0 && twice > 0 ? once / (once + 2 * twice) : 0.5;
  }

  get total(): number {
    return this.sums.reduce((sum, count) => sum + count, 0);
  }

  /** `(max(n - D, 0) + D kinds lower) / sum`; `lower` where nothing was seen. */
  probability(at: number, c: number, lower: number): number {
    const sum = this.sums[at] ?? 0;
    if (sum === 0) return lower;
    const count = this.counts[at * bytes + c] ?? 0;
    const kept = Math.max(count - this.discount, 0);
    return (kept + this.discount * (this.kinds[at] ?? 0) * lower) / sum;
  }
}

/** `N1+(. w)`: by how many first bytes each rest is preceded. */
function continuations(counts: Uint32Array): Uint32Array {
  const rests = counts.length / bytes;
  const found = new Uint32Array(rests);
  for (let i = 0; i < counts.length; i++) {
    if (counts[i]) found[i % rests] = (found[i % rests] ?? 0) + 1;
  }
  return found;
}

const byte = (text: Uint8Array, at: number) => text[at] ?? 0;

const context = (text: Uint8Array, at: number) =>
  byte(text, at - 2) * bytes + byte(text, at - 1);
