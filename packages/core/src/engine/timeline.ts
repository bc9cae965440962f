import { ArgumentError, AsaError } from '../errors';
import type { BatchPart } from '../model/batch';
import type { Retention } from './retention';
import type { SlotPool } from './slot-pool';

/** A session was used after it was freed, or twice at the same time. */
export class SessionStateError extends AsaError {
  override readonly name = 'SessionStateError';
}

/**
 * The tokens of a session beside the slot of a cache that holds some of them:
 * those behind its own length are still to be run. Going back is therefore
 * cheap; what a cache cannot take back is run again with the next tokens.
 */
export class Timeline {
  /** Logits `[V]` behind the last token, if they are known. */
  logits: Float32Array | undefined;
  private buffer: Int32Array = new Int32Array(64);
  private count = 0;
  private staged = 0;
  private state: 'idle' | 'busy' | 'freed' = 'idle';

  constructor(
    readonly pool: SlotPool,
    readonly slot: number,
    private readonly retention: Retention,
  ) {}

  get length(): number {
    return this.count;
  }

  get capacity(): number {
    return this.pool.cache.capacity;
  }

  /** A copy of the tokens. */
  tokens(): Int32Array {
    return this.buffer.slice(0, this.count);
  }

  /** Nobody else may use the timeline until `unlock`. */
  lock(): void {
    this.checkIdle();
    this.state = 'busy';
  }

  unlock(): void {
    this.state = 'idle';
  }

  /** @throws SessionStateError while it is in use, and after `free`. */
  checkIdle(): void {
    if (this.state === 'freed') {
      throw new SessionStateError('session: it was freed');
    }
    if (this.state === 'busy') {
      throw new SessionStateError(
        'session: it takes one call at a time, wait for the one that runs',
      );
    }
  }

  /** @throws ArgumentError when `more` tokens do not fit. */
  checkCapacity(more: number): void {
    if (this.count + more > this.capacity) {
      throw new ArgumentError(
        `session: its capacity is ${this.capacity} tokens, got ${this.count} and ${more} more`,
      );
    }
  }

  /** Adds a token that the next call will run. */
  append(token: number): void {
    this.checkCapacity(1);
    this.put([token]);
    this.count += 1;
    this.logits = undefined;
  }

  /** Lays tokens out behind the others; `commit` makes them part of these. */
  stage(tokens: ArrayLike<number>): void {
    this.put(tokens);
    this.staged = tokens.length;
    // Without new tokens the last one gives the logits once more.
    if (this.pending === 0 && !this.logits) {
      this.retention.rewind(this.count - 1);
    }
  }

  /** Tokens that the cache has taken. */
  get ran(): number {
    return this.retention.length;
  }

  /** The cache can always take back its last token. */
  get canGoBack(): boolean {
    return !this.retention.limits.isRecurrent;
  }

  /** Tokens still to be run, staged ones included. */
  get pending(): number {
    return this.count + this.staged - this.retention.length;
  }

  /** The next at most `limit` tokens to run. */
  next(limit: number): Required<BatchPart> {
    const past = this.retention.length;
    const end = past + Math.min(limit, this.pending);
    return { tokens: this.buffer.subarray(past, end), past };
  }

  /** The cache is about to take `count` tokens. */
  begin(count: number): void {
    // States start at zero; rows need no clearing.
    if (this.retention.length === 0) this.pool.cache.resetSlot(this.slot);
    this.retention.begin(count);
  }

  /** It took them. */
  complete(count: number): void {
    this.retention.complete(count);
  }

  /** All staged tokens were run. */
  commit(logits: Float32Array): void {
    this.count += this.staged;
    this.staged = 0;
    this.logits = logits;
  }

  /** Forgets the staged tokens. */
  cancel(): void {
    this.staged = 0;
    this.retention.rewind(this.count);
  }

  rollback(length: number): void {
    if (length === this.count) return;
    this.count = length;
    this.logits = undefined;
    this.retention.rewind(length);
  }

  /** The same tokens in another slot. */
  copyTo(pool: SlotPool, slot: number): Timeline {
    this.pool.cache.copySlot(this.slot, pool.cache, slot);
    const copy = new Timeline(pool, slot, this.retention.copy());
    copy.buffer = this.buffer.slice();
    copy.count = this.count;
    copy.logits = this.logits;
    return copy;
  }

  free(): void {
    if (this.state === 'freed') return;
    this.checkIdle();
    this.state = 'freed';
    this.pool.release(this.slot);
  }

  private put(tokens: ArrayLike<number>): void {
    const end = this.count + tokens.length;
    if (end > this.buffer.length) {
      const room = Math.max(
        end,
        Math.min(2 * this.buffer.length, this.capacity),
      );
      const grown = new Int32Array(room);
      grown.set(this.buffer.subarray(0, this.count));
      this.buffer = grown;
    }
    this.buffer.set(tokens, this.count);
  }
}

/** Runs `body` while nobody else may use the timelines. */
export async function locked<T>(
  timelines: readonly Timeline[],
  body: () => Promise<T>,
): Promise<T> {
  lockAll(timelines);
  try {
    return await body();
  } finally {
    for (const timeline of timelines) timeline.unlock();
  }
}

/** Locks all or none. */
export function lockAll(timelines: readonly Timeline[]): void {
  const done: Timeline[] = [];
  try {
    for (const timeline of timelines) {
      timeline.lock();
      done.push(timeline);
    }
  } catch (error) {
    for (const timeline of done) timeline.unlock();
    throw error;
  }
}
