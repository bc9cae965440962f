import { ArgumentError } from '../errors';
import type { Model } from '../model/model';
import { type ExtendOptions, extendTimelines } from './extend';
import { locked, type Timeline } from './timeline';

/** What a session needs of its engine. */
export interface SessionHost {
  readonly model: Model;
  /** The same tokens and cache rows in a slot of its own. */
  fork(timeline: Timeline): Timeline;
}

/**
 * One mutable sequence of tokens and what a model remembers of it. Calls must
 * not overlap: each throws a SessionStateError while another runs, and after
 * `free`.
 */
export class Session {
  /** @internal */
  constructor(
    private readonly host: SessionHost,
    /** @internal */
    readonly timeline: Timeline,
  ) {}

  /** Number of tokens. */
  get length(): number {
    return this.timeline.length;
  }

  /** Tokens that it may grow to. */
  get capacity(): number {
    return this.timeline.capacity;
  }

  /** A copy of the tokens so far. */
  get tokens(): Int32Array {
    return this.timeline.tokens();
  }

  /** Bytes of the cache that are this session's. */
  get bytes(): number {
    return this.timeline.pool.bytesPerSlot;
  }

  /**
   * Takes tokens in and returns the logits `[V]` behind the last one. Long
   * input runs in chunks; the result does not depend on them. When it throws,
   * an aborted signal's reason included, the session is as it was.
   * @param tokens may be empty where the session is not: its last logits.
   * @throws ArgumentError for a token beyond the vocabulary, or more tokens
   * than the capacity holds.
   */
  async extend(
    tokens: ArrayLike<number>,
    options: ExtendOptions = {},
  ): Promise<Float32Array> {
    const { timeline, host } = this;
    const [logits] = await locked([timeline], () =>
      extendTimelines(host.model, [{ timeline, tokens }], options),
    );
    if (!logits) throw new ArgumentError('internal: an extension gave nothing');
    return logits.slice();
  }

  /**
   * Forgets the tokens from `length` on, at once. The next call runs again what
   * the cache cannot take back: fewer than r tokens where queries inherit block
   * lists; all tokens so far where a window's ring has lost rows (which going
   * back by one token does not need), or a layer is recurrent.
   * @throws ArgumentError when `length` is not from 0 to the session's length.
   */
  rollback(length: number): void {
    const { timeline } = this;
    timeline.checkIdle();
    if (
      !(Number.isSafeInteger(length) && length >= 0 && length <= this.length)
    ) {
      throw new ArgumentError(
        `session: a rollback goes to a length from 0 to ${this.length}, got ${length}`,
      );
    }
    timeline.rollback(length);
  }

  /** An independent session with the same tokens; copies the cache's rows. */
  fork(): Session {
    this.timeline.checkIdle();
    return new Session(this.host, this.host.fork(this.timeline));
  }

  /** Forgets all tokens. */
  reset(): void {
    this.rollback(0);
  }

  /** Gives the memory back; freeing twice is harmless. */
  free(): void {
    this.timeline.free();
  }
}
