import { ArgumentError } from '../errors';

/** Token ids, two bytes each where the vocabulary allows. */
export type TokenIds = Uint16Array | Int32Array;

/** Token ids of documents, one behind the other in one array. */
export class Documents {
  /**
   * @param tokens of all documents.
   * @param starts of each document in `tokens`, ascending from 0.
   * @param counted of each token, 0 where predicting it teaches nothing; all
   *   count when left out.
   */
  constructor(
    readonly tokens: TokenIds,
    readonly starts: Uint32Array,
    readonly counted?: Uint8Array,
  ) {
    if (counted && counted.length !== tokens.length) {
      throw new ArgumentError(
        `documents: counted must be as long as the ${tokens.length} tokens, got ${counted.length}`,
      );
    }
    let before = 0;
    for (const start of starts) {
      if (start < before || start > tokens.length) {
        throw new ArgumentError(
          `documents: starts must ascend within the ${tokens.length} tokens, got ${start} behind ${before}`,
        );
      }
      before = start;
    }
    if (tokens.length > 0 && starts[0] !== 0) {
      throw new ArgumentError(
        `documents: the first must start at 0, got ${starts[0]}`,
      );
    }
  }

  /** Cuts a corpus behind each end token, which stays with its document. */
  static split(
    tokens: TokenIds,
    endToken: number,
    counted?: Uint8Array,
  ): Documents {
    const starts: number[] = [];
    let start = 0;
    for (let i = 0; i < tokens.length; i++) {
      if (tokens[i] !== endToken && i + 1 < tokens.length) continue;
      starts.push(start);
      start = i + 1;
    }
    return new Documents(tokens, Uint32Array.from(starts), counted);
  }

  static of(documents: readonly ArrayLike<number>[]): Documents {
    const starts = new Uint32Array(documents.length);
    let total = 0;
    documents.forEach((document, i) => {
      starts[i] = total;
      total += document.length;
    });
    const tokens = new Int32Array(total);
    documents.forEach((document, i) => {
      tokens.set(document, starts[i]);
    });
    return new Documents(tokens, starts);
  }

  get count(): number {
    return this.starts.length;
  }

  /** The tokens of one document; no copy. */
  at(index: number): TokenIds {
    return this.tokens.subarray(
      this.starts[index] ?? this.tokens.length,
      this.starts[index + 1] ?? this.tokens.length,
    );
  }

  /** 32 bits (FNV-1a) that tell other data from these, as eight hex digits. */
  fingerprint(): string {
    let hash = 0x811c9dc5;
    for (const values of [this.tokens, this.starts, this.counted]) {
      if (!values) continue;
      for (let i = 0; i < values.length; i++) {
        hash = Math.imul(hash ^ (values[i] ?? 0), 0x01000193);
      }
      hash = Math.imul(hash ^ values.length, 0x01000193);
    }
    return (hash >>> 0).toString(16).padStart(8, '0');
  }
}
