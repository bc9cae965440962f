import { ArgumentError } from '../errors';
import { Random } from '../random';
import type { Documents, TokenIds } from './documents';

/**
 * A run of one document's tokens and, for each, the token that follows it.
 * Both have the same length; -1 where a target does not count.
 */
export interface Piece {
  readonly tokens: TokenIds;
  readonly targets: TokenIds;
}

/** Pieces of together at most `context` tokens. None sees another. */
export type Row = readonly Piece[];

/** Where a `Batches` stands. Plain data. */
export interface BatchPosition {
  /** Counts from 0. */
  readonly epoch: number;
  /** Rows taken of this epoch. */
  readonly row: number;
  /** The generator's state when the epoch began. */
  readonly random: readonly number[];
}

export interface BatchesOptions {
  /** Most tokens of a row. */
  readonly context: number;
  readonly seed: number;
}

/** Rows that wait for a short piece to fill them. */
const openRows = 32;

/**
 * Rows of tokens, without end. A document is cut every `context` tokens; the
 * last token of a piece has the next piece's first one as its target, so every
 * token but a document's first is predicted once an epoch. Each epoch shuffles
 * the pieces and fills each row with whole pieces, best fit first.
 * Source of the packing: arXiv 2404.10830.
 */
export class Batches {
  private readonly pieces: Pieces;
  private random: Random;
  private epoch = 0;
  private row = 0;
  private epochState: readonly number[];
  private rows: readonly (readonly number[])[];

  /** @throws ArgumentError when no document has two tokens. */
  constructor(
    private readonly documents: Documents,
    private readonly options: BatchesOptions,
  ) {
    const { context, seed } = options;
    if (!Number.isSafeInteger(context) || context < 1) {
      throw new ArgumentError(
        `batches: context must be a positive integer, got ${context}`,
      );
    }
    this.pieces = cut(documents, context);
    if (this.pieces.starts.length === 0) {
      throw new ArgumentError(
        `batches: a document must have at least 2 tokens to learn from, got ${documents.count} documents with ${documents.tokens.length} tokens`,
      );
    }
    this.random = Random.fromSeed(seed);
    this.epochState = this.random.state;
    this.rows = this.plan();
  }

  /** Rows of this epoch, those that were taken included. */
  get rowsInEpoch(): number {
    return this.rows.length;
  }

  get position(): BatchPosition {
    return { epoch: this.epoch, row: this.row, random: this.epochState };
  }

  /**
   * Goes on where `position` was read, over the same documents.
   * @throws ArgumentError when these documents have no such row.
   */
  seek({ epoch, row, random }: BatchPosition): void {
    this.random = Random.fromState(random);
    this.epochState = this.random.state;
    this.rows = this.plan();
    if (!Number.isSafeInteger(row) || row < 0 || row > this.rows.length) {
      throw new ArgumentError(
        `batches: row must be from 0 to ${this.rows.length}, got ${row}`,
      );
    }
    this.epoch = epoch;
    this.row = row;
  }

  /** The next `count` rows; a new epoch begins where one ends. */
  take(count: number): Row[] {
    return Array.from({ length: count }, () => this.next());
  }

  private next(): Row {
    if (this.row === this.rows.length) {
      this.epoch += 1;
      this.row = 0;
      this.epochState = this.random.state;
      this.rows = this.plan();
    }
    const row = this.rows[this.row] ?? [];
    this.row += 1;
    return row.map((piece) => this.piece(piece));
  }

  private piece(index: number): Piece {
    const { tokens, counted } = this.documents;
    const start = this.pieces.starts[index] ?? 0;
    const length = this.pieces.lengths[index] ?? 0;
    const targets = tokens.subarray(start + 1, start + length + 1);
    return {
      tokens: tokens.subarray(start, start + length),
      targets: counted
        ? Int32Array.from(targets, (target, i) =>
            counted[start + 1 + i] ? target : -1,
          )
        : targets,
    };
  }

  private plan(): number[][] {
    const { lengths } = this.pieces;
    const order = shuffled(lengths.length, this.random);
    return pack(order, lengths, this.options.context);
  }
}

/** Where each piece begins in the corpus, and how many tokens it predicts. */
interface Pieces {
  readonly starts: Uint32Array;
  readonly lengths: Uint32Array;
}

function cut({ starts, tokens, counted }: Documents, context: number): Pieces {
  const found: { start: number; length: number }[] = [];
  starts.forEach((first, document) => {
    // The last token has nothing to predict.
    const last = (starts[document + 1] ?? tokens.length) - 1;
    for (let start = first; start < last; start += context) {
      const length = Math.min(context, last - start);
      const targets = counted?.subarray(start + 1, start + length + 1);
      if (targets?.every((counts) => counts === 0)) continue;
      found.push({ start, length });
    }
  });
  return {
    starts: Uint32Array.from(found, ({ start }) => start),
    lengths: Uint32Array.from(found, ({ length }) => length),
  };
}

/** Fisher and Yates. */
function shuffled(count: number, random: Random): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const swapped = order[i] ?? 0;
    order[i] = order[j] ?? 0;
    order[j] = swapped;
  }
  return order;
}

interface OpenRow {
  room: number;
  readonly pieces: number[];
}

/** Each piece goes into the open row that it fills best, or opens one. */
function pack(
  order: Uint32Array,
  lengths: Uint32Array,
  context: number,
): number[][] {
  const rows: number[][] = [];
  let open: OpenRow[] = [];
  for (const piece of order) {
    const length = lengths[piece] ?? 0;
    const fits = open.filter((row) => row.room >= length);
    let row = fullest(fits);
    if (!row) {
      row = { room: context, pieces: [] };
      open.push(row);
    }
    row.pieces.push(piece);
    row.room -= length;
    const done =
      row.room === 0 ? row : open.length > openRows ? fullest(open) : undefined;
    if (done) {
      rows.push(done.pieces);
      open = open.filter((other) => other !== done);
    }
  }
  return [...rows, ...open.map(({ pieces }) => pieces)];
}

function fullest(rows: readonly OpenRow[]): OpenRow | undefined {
  return rows.reduce<OpenRow | undefined>(
    (best, row) => (best && best.room <= row.room ? best : row),
    undefined,
  );
}
