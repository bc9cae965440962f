import type { Backend } from './backend';
import { ArgumentError } from './errors';
import { Tensor } from './tensor';

/**
 * One sequence inside flattened token axes. Its queries are the *last*
 * `queryCount` of its `keyCount` positions: query i stands at position
 * `keyCount - queryCount + i`.
 */
export interface Sequence {
  /** Row of the first query on the query axis. */
  readonly queryStart: number;
  readonly queryCount: number;
  /** Row of position 0 on the key axis. */
  readonly keyStart: number;
  readonly keyCount: number;
  /** Row of compressed block 0 on the block axis. */
  readonly blockStart: number;
  /** Row of the first leader's block list on the leader axis. */
  readonly leaderStart: number;
}

/** How a global layer cuts a sequence. Source: maths.md §3. */
export interface Blocking {
  /** Compression block `l`, in tokens. */
  readonly length: number;
  /** Compression stride `d`, in tokens. */
  readonly stride: number;
  /** Queries `r` that share one selection. */
  readonly sharing: number;
}

const columns = 6;
const leastRoom = 256;

/** `NC`: the compressed blocks that lie wholly in the first `tokens` tokens. */
export function blockCount(
  tokens: number,
  { length, stride }: { readonly length: number; readonly stride: number },
): number {
  return Math.max(0, Math.floor((tokens - length) / stride) + 1);
}

/** Leaders whose lists the queries `[first, first + count)` need. */
export function leaderCount(
  first: number,
  count: number,
  sharing: number,
): number {
  if (count === 0) return 0;
  return (
    Math.floor((first + count - 1) / sharing) - Math.floor(first / sharing) + 1
  );
}

/**
 * The sequences of one call: a batch `[B, T]`, packed documents, or sessions
 * of different lengths are all the same list. Lives on the host; `on` gives
 * the device its copy, `[S, 6]`, columns in the order of `Sequence`. Rows that
 * belong to no sequence get 0, LSE -inf, and -1 in block lists.
 */
export class Sequences {
  /** `[S, 6]` */
  readonly rows: Int32Array;
  private readonly copies = new Map<Backend, Tensor>();

  constructor(private entries: readonly Sequence[]) {
    this.rows = new Int32Array(entries.length * columns);
    entries.forEach((sequence, index) => {
      checkSequence(sequence, index);
      this.rows.set(
        [
          sequence.queryStart,
          sequence.queryCount,
          sequence.keyStart,
          sequence.keyCount,
          sequence.blockStart,
          sequence.leaderStart,
        ],
        index * columns,
      );
    });
  }

  get list(): readonly Sequence[] {
    return this.entries;
  }

  /**
   * Sequences that stand one behind the other on every axis.
   * @param counts queries and keys of each; `keys` defaults to `queries`.
   */
  static packed(
    counts: readonly { readonly queries: number; readonly keys?: number }[],
    blocking: Blocking = { length: 1, stride: 1, sharing: 1 },
  ): Sequences {
    let [queryStart, keyStart, blockStart, leaderStart] = [0, 0, 0, 0];
    const list = counts.map(({ queries, keys = queries }) => {
      const sequence = {
        queryStart,
        queryCount: queries,
        keyStart,
        keyCount: keys,
        blockStart,
        leaderStart,
      };
      queryStart += queries;
      keyStart += keys;
      blockStart += blockCount(keys, blocking);
      leaderStart += leaderCount(keys - queries, queries, blocking.sharing);
      return sequence;
    });
    return new Sequences(list);
  }

  /** A batch of `batch` sequences of the same lengths: `[B, T, ...]` flattened. */
  static uniform(
    batch: number,
    queries: number,
    keys = queries,
    blocking?: Blocking,
  ): Sequences {
    return Sequences.packed(
      Array.from({ length: batch }, () => ({ queries, keys })),
      blocking,
    );
  }

  get count(): number {
    return this.list.length;
  }

  /** The longest run of queries and of keys: what a launch is sized by. */
  get maxQueries(): number {
    return Math.max(0, ...this.list.map((s) => s.queryCount));
  }
  get maxKeys(): number {
    return Math.max(0, ...this.list.map((s) => s.keyCount));
  }

  /**
   * Keys that launches make room for: a power of two, so that what was
   * enqueued for one length serves others of about that length.
   */
  get keyRoom(): number {
    return Math.max(leastRoom, 2 ** Math.ceil(Math.log2(this.maxKeys)));
  }

  /** Rows that each flattened axis must have at least. */
  get queryRows(): number {
    return Math.max(0, ...this.list.map((s) => s.queryStart + s.queryCount));
  }
  get keyRows(): number {
    return Math.max(0, ...this.list.map((s) => s.keyStart + s.keyCount));
  }
  blockRows(blocking: Pick<Blocking, 'length' | 'stride'>): number {
    return Math.max(
      0,
      ...this.list.map((s) => s.blockStart + blockCount(s.keyCount, blocking)),
    );
  }
  leaderRows(sharing: number): number {
    const counts = this.leaderCounts(sharing);
    return Math.max(
      0,
      ...this.list.map((s, i) => s.leaderStart + (counts[i] ?? 0)),
    );
  }
  /** Leaders whose lists each sequence's queries need. */
  leaderCounts(sharing: number): number[] {
    return this.list.map((s) =>
      leaderCount(s.keyCount - s.queryCount, s.queryCount, sharing),
    );
  }

  /** Every query is also a key: what the backward passes need. */
  get isSelfAttention(): boolean {
    return this.list.every(
      (s) => s.queryCount === s.keyCount && s.queryStart === s.keyStart,
    );
  }

  /** The copy on a device, i32 `[S, 6]`; made at the first call, then kept. */
  on(backend: Backend): Tensor {
    let copy = this.copies.get(backend);
    if (copy === undefined) {
      const storage = backend.allocate(this.rows.length, 'i32');
      backend.write(storage, this.rows);
      copy = new Tensor(
        { backend, storage, freed: false },
        [this.count, columns],
        'i32',
      );
      this.copies.set(backend, copy);
    }
    return copy;
  }

  /** Takes the entries of as many other sequences, on the devices too. */
  assign(other: Sequences): void {
    this.entries = other.entries;
    if (this.rows.every((value, i) => value === other.rows[i])) return;
    this.rows.set(other.rows);
    for (const { backend, storage } of this.copies.values()) {
      backend.write(storage, this.rows);
    }
  }

  /** Frees the device copies. */
  free(): void {
    for (const copy of this.copies.values()) copy.free();
    this.copies.clear();
  }
}

function checkSequence(sequence: Sequence, index: number): void {
  for (const [field, value] of Object.entries(sequence)) {
    if (!Number.isSafeInteger(value) || value < 0 || value > 0x7fffffff) {
      throw new ArgumentError(
        `sequences: ${field} of sequence ${index} must be an integer from 0 to 2147483647, got ${value}`,
      );
    }
  }
  if (sequence.queryCount > sequence.keyCount) {
    throw new ArgumentError(
      `sequences: the queries are the last of the keys, so queryCount <= keyCount, got ${sequence.queryCount} and ${sequence.keyCount} in sequence ${index}`,
    );
  }
}
