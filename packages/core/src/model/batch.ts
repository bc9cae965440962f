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

/** An index tensor with the function that gives its values. */
interface Indices {
  readonly tensor: Tensor;
  readonly values: () => ArrayLike<number>;
  /** What the tensor holds; unknown once a kernel wrote it. */
  held: ArrayLike<number> | undefined;
}

interface Layout {
  readonly sequences: Sequences;
  readonly make: () => Sequences;
}

/** A decision of the host, as text, with the function that takes it. */
interface Choice {
  readonly text: string;
  readonly take: () => unknown;
}

/**
 * The tokens that one forward call works on, flattened, and the index tensors
 * its layers share. A batch, packed documents, and sessions of different
 * lengths are all lists of parts.
 *
 * All that depends on where the parts stand lies in index tensors and layouts,
 * which are functions of `pasts`, or is a `choice`. So the same commands serve
 * the batch at any other place where every choice is the same: `moveTo`.
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
  private readonly scope: Scope;
  private readonly tensors = new Map<string, Indices>();
  private readonly layouts = new Map<string, Layout>();
  private readonly choices = new Map<string, Choice>();
  private before: readonly number[];

  constructor(
    private readonly backend: Backend,
    readonly parts: readonly BatchPart[],
  ) {
    this.scope = new Scope(backend);
    this.counts = parts.map((part) => part.tokens.length);
    this.before = parts.map((part) => part.past ?? 0);
    this.starts = runningSum(this.counts);
    const total = this.counts.reduce((sum, n) => sum + n, 0);
    this.tokens = new Int32Array(total);
    this.positions = new Int32Array(total);
    for (const [index, { tokens }] of parts.entries()) {
      this.setTokens(index, tokens);
    }
    this.setPositions();
  }

  /** Tokens of each part before this call. */
  get pasts(): readonly number[] {
    return this.before;
  }

  /** `[0, ...]` sequences that begin with this call: nothing lies before. */
  get isFresh(): boolean {
    return this.choice('fresh', () => this.pasts.every((past) => past === 0));
  }

  /** One token a sequence. */
  get isDecode(): boolean {
    return this.counts.every((count) => count === 1);
  }

  /** The tokens on the device, i32 `[N]`. */
  get ids(): Tensor {
    return this.indices('tokens', () => this.tokens);
  }

  /** An i32 tensor that several layers read; made once, freed with the batch. */
  indices(key: string, values: () => ArrayLike<number>): Tensor {
    const known = this.tensors.get(key);
    if (known) return known.tensor;
    const held = Int32Array.from(values());
    const tensor = this.scope.indices(held);
    this.tensors.set(key, { tensor, values, held });
    return tensor;
  }

  /** Sequences that several layers share; made once, freed with the batch. */
  layout(key: string, make: () => Sequences): Sequences {
    const known = this.layouts.get(key);
    if (known) return known.sequences;
    const sequences = make();
    this.layouts.set(key, { sequences, make });
    // Launches are sized by the queries and, roughly, by the keys.
    this.choice(`layout ${key}`, () => sizesOf(make()));
    return sequences;
  }

  /** What decides which operators run, or on what shapes. */
  choice<T>(key: string, take: () => T): T {
    const value = take();
    this.choices.set(key, { text: String(value), take });
    return value;
  }

  /**
   * Stands at other positions, with other tokens where they are given: the
   * index tensors get their new values. False, and nothing has changed, where
   * a choice would be another one.
   */
  moveTo(pasts: readonly number[], tokens?: ArrayLike<number>): boolean {
    const { before } = this;
    this.before = pasts;
    for (const { text, take } of this.choices.values()) {
      if (String(take()) !== text) {
        this.before = before;
        return false;
      }
    }
    this.setPositions();
    if (tokens) this.tokens.set(tokens);
    for (const { sequences, make } of this.layouts.values()) {
      sequences.assign(make());
    }
    for (const [key, entry] of this.tensors) {
      if (key !== 'tokens' || tokens) this.refresh(entry);
    }
    return true;
  }

  /** Takes tokens that lie on the device: row `rows[i]` of `from` is token i. */
  take(from: Tensor, rows: readonly number[]): void {
    const ids = this.ids.storage;
    rows.forEach((row, i) => {
      this.backend.copy(from.storage, row, ids, i, 1);
    });
    const entry = this.tensors.get('tokens');
    if (entry) entry.held = undefined;
  }

  free(): void {
    this.scope.free();
    for (const { sequences } of this.layouts.values()) sequences.free();
    this.tensors.clear();
    this.layouts.clear();
    this.choices.clear();
  }

  private setTokens(index: number, tokens: ArrayLike<number>): void {
    const start = this.starts[index] ?? 0;
    for (let i = 0; i < tokens.length; i++) {
      this.tokens[start + i] = tokens[i] ?? 0;
    }
  }

  private setPositions(): void {
    this.counts.forEach((count, index) => {
      const start = this.starts[index] ?? 0;
      const past = this.before[index] ?? 0;
      for (let i = 0; i < count; i++) this.positions[start + i] = past + i;
    });
  }

  private refresh(entry: Indices): void {
    const values = Int32Array.from(entry.values());
    const { held, tensor } = entry;
    if (held && values.every((value, i) => value === held[i])) return;
    this.backend.write(tensor.storage, values);
    entry.held = values;
  }
}

function sizesOf(sequences: Sequences): string {
  const queries = sequences.list.map(({ queryCount }) => queryCount);
  return `${queries} ${sequences.keyRoom}`;
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
