import type { Backend } from '../backend';
import { Scope } from '../scope';
import type { Sequences } from '../sequences';
import type { Tensor } from '../tensor';

/** One sequence's share of a forward call. */
export interface BatchPart {
  readonly tokens: ArrayLike<number>;
  /** Tokens of the sequence before these; 0 when left out. */
  readonly past?: number;
}

/**
 * The tokens that one forward call works on, flattened, and the index tensors
 * its layers share. A batch, packed documents, and sessions of different
 * lengths are all lists of parts.
 */
export class Batch {
  /** `[N]` */
  readonly tokens: Int32Array;
  /** Position of each token in its own sequence, `[N]`. */
  readonly positions: Int32Array;
  /** Row of each part's first token. */
  readonly starts: readonly number[];
  /** New tokens of each part. */
  readonly counts: readonly number[];
  /** Tokens of each part before this call. */
  readonly pasts: readonly number[];
  private readonly scope: Scope;
  private readonly tensors = new Map<string, Tensor>();
  private readonly layouts = new Map<string, Sequences>();

  constructor(
    backend: Backend,
    readonly parts: readonly BatchPart[],
  ) {
    this.scope = new Scope(backend);
    this.counts = parts.map((part) => part.tokens.length);
    this.pasts = parts.map((part) => part.past ?? 0);
    this.starts = runningSum(this.counts);
    const total = this.counts.reduce((sum, n) => sum + n, 0);
    this.tokens = new Int32Array(total);
    this.positions = new Int32Array(total);
    parts.forEach(({ tokens, past = 0 }, index) => {
      const start = this.starts[index] ?? 0;
      for (let i = 0; i < tokens.length; i++) {
        this.tokens[start + i] = tokens[i] ?? 0;
        this.positions[start + i] = past + i;
      }
    });
  }

  /** `[0, ...]` sequences that begin with this call: nothing lies before. */
  get isFresh(): boolean {
    return this.pasts.every((past) => past === 0);
  }

  /** An i32 tensor that several layers read; made once, freed with the batch. */
  indices(key: string, values: () => ArrayLike<number>): Tensor {
    let tensor = this.tensors.get(key);
    if (!tensor) {
      tensor = this.scope.indices(values());
      this.tensors.set(key, tensor);
    }
    return tensor;
  }

  /** Sequences that several layers share; made once, freed with the batch. */
  layout(key: string, make: () => Sequences): Sequences {
    let sequences = this.layouts.get(key);
    if (!sequences) {
      sequences = make();
      this.layouts.set(key, sequences);
    }
    return sequences;
  }

  free(): void {
    this.scope.free();
    for (const sequences of this.layouts.values()) sequences.free();
    this.tensors.clear();
    this.layouts.clear();
  }
}

/** Where each of consecutive runs starts. */
export function runningSum(counts: readonly number[]): number[] {
  let sum = 0;
  return counts.map((count) => {
    const start = sum;
    sum += count;
    return start;
  });
}
