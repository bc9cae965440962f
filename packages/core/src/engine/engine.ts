import type { Backend, MemoryStatistics } from '../backend';
import type { FloatType } from '../dtype';
import { ArgumentError } from '../errors';
import type { Folder } from '../io/files';
import { loadModel } from '../io/model-folder';
import { Cache } from '../model/cache';
import type { ModelConfig } from '../model/config';
import type { Model } from '../model/model';
import type { Tokenizer } from '../text/tokenizer';
import { type ExtendOptions, extendTimelines } from './extend';
import {
  type BatchEvent,
  type GenerateEvent,
  type GenerateOptions,
  generateAll,
} from './generate';
import { loadTokenizer } from './load-tokenizer';
import { Retention, retentionLimits } from './retention';
import { Session, type SessionHost } from './session';
import { SlotPool } from './slot-pool';
import { Steps } from './steps';
import { locked, Timeline } from './timeline';

export interface OpenOptions {
  /** Type of the weights and of the caches on the device; f32 when left out. */
  readonly dtype?: FloatType;
  readonly signal?: AbortSignal;
  /** Called behind each tensor of the weights. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

export interface SessionOptions {
  /** Tokens a session may grow to; the model's context when left out. */
  readonly capacity?: number;
  /**
   * Keep only the window of windowed layers: less memory, but a rollback by
   * more than one token runs the session again. True when left out.
   */
  readonly ring?: boolean;
}

export interface EngineMemory extends MemoryStatistics {
  /** Bytes of the caches of all sessions. */
  readonly cacheBytes: number;
}

/**
 * A loaded model: sessions to write into, and text out of them. The outer
 * boundary of the library; no tensor crosses it.
 */
export class Engine {
  private readonly pools = new Map<SlotPool, SessionOptions>();
  private readonly host: SessionHost;

  private constructor(
    private readonly model: Model,
    readonly tokenizer: Tokenizer | undefined,
    private readonly ownsModel: boolean,
  ) {
    this.host = { model, fork: (timeline) => this.fork(timeline) };
  }

  /**
   * Loads a model folder: configuration, weights and, if it is there, the
   * tokenizer.
   * @throws ConfigError and CheckpointError, with the file that breaks a rule.
   */
  static async open(
    folder: Folder,
    backend: Backend,
    options: OpenOptions = {},
  ): Promise<Engine> {
    const { model, config } = await loadModel(folder, backend, options);
    try {
      const tokenizer = await loadTokenizer(folder, config.vocabularySize);
      return new Engine(model, tokenizer, true);
    } catch (error) {
      model.free();
      throw error;
    }
  }

  /** An engine around a model, which stays its maker's to free. */
  static from(model: Model, tokenizer?: Tokenizer): Engine {
    return new Engine(model, tokenizer, false);
  }

  get config(): ModelConfig {
    return this.model.config;
  }

  /** Bytes on the backend; other users of it count too. */
  get memory(): EngineMemory {
    const cacheBytes = [...this.pools.keys()].reduce(
      (sum, { bytesPerSlot, cache }) => sum + bytesPerSlot * cache.slots,
      0,
    );
    return { ...this.model.backend.memory(), cacheBytes };
  }

  /**
   * An empty session.
   * @throws ArgumentError, OutOfMemoryError
   */
  session(options: SessionOptions = {}): Session {
    return new Session(this.host, this.timeline(this.pool(1, options)));
  }

  /**
   * Empty sessions that share one cache, so that they run in one batch. The
   * cache is freed with the last of them.
   * @throws ArgumentError, OutOfMemoryError
   */
  sessions(count: number, options: SessionOptions = {}): Session[] {
    const pool = this.pool(count, options);
    return Array.from(
      { length: count },
      () => new Session(this.host, this.timeline(pool)),
    );
  }

  /**
   * Extends several sessions, whatever their lengths, by their own tokens each;
   * those of one cache in one batch. Returns the logits `[V]` behind each last
   * token. When it throws, all sessions are as they were.
   * @throws ArgumentError, SessionStateError as `Session.extend` does.
   */
  async extend(
    sessions: readonly Session[],
    tokens: readonly ArrayLike<number>[],
    options: ExtendOptions = {},
  ): Promise<Float32Array[]> {
    checkPairs('tokens', sessions, tokens);
    const timelines = this.timelines(sessions);
    const extensions = timelines.map((timeline, i) => ({
      timeline,
      tokens: tokens[i] ?? [],
    }));
    const logits = await locked(timelines, () =>
      extendTimelines(this.model, extensions, options),
    );
    return logits.flatMap((row) => (row ? [row.slice()] : []));
  }

  /**
   * Takes the prompt in and streams tokens, then one end. Leaving the loop
   * early is fine: the session holds the prompt and the tokens that came.
   * @throws ArgumentError for options that mean nothing; what the backend
   * throws.
   */
  async *generate(
    session: Session,
    options: GenerateOptions = {},
  ): AsyncGenerator<GenerateEvent, void, undefined> {
    for await (const { event } of this.generateBatch([session], [options])) {
      yield event;
    }
  }

  /** `generate` on several sessions at once, one batch a token. */
  generateBatch(
    sessions: readonly Session[],
    options: readonly GenerateOptions[],
  ): AsyncGenerator<BatchEvent, void, undefined> {
    checkPairs('options', sessions, options);
    const requests = this.timelines(sessions).map((timeline, i) => ({
      timeline,
      options: options[i] ?? {},
    }));
    return generateAll(this.model, this.tokenizer, requests);
  }

  /** Frees the caches of all sessions, and the model that `open` loaded. */
  free(): void {
    for (const pool of [...this.pools.keys()]) pool.free();
    if (this.ownsModel) this.model.free();
  }

  /** Tokens that can come: an embedding may have rows that mean nothing. */
  private get width(): number {
    const { vocabularySize } = this.config;
    const known = this.tokenizer?.vocabularySize ?? vocabularySize;
    return Math.min(vocabularySize, known);
  }

  private pool(slots: number, options: SessionOptions): SlotPool {
    const { capacity = this.config.context, ring = true } = options;
    const { backend, config, dtype } = this.model;
    const cache = new Cache(backend, config, { slots, capacity, ring, dtype });
    const steps = new Steps(this.model, cache, this.width);
    const pool = new SlotPool(cache, steps, () => this.pools.delete(pool));
    this.pools.set(pool, { capacity, ring });
    return pool;
  }

  private timeline(pool: SlotPool): Timeline {
    const { capacity } = pool.cache;
    const { ring = true } = this.pools.get(pool) ?? {};
    const limits = retentionLimits(this.config, { capacity, ring });
    return new Timeline(pool, slotOf(pool), new Retention(limits));
  }

  /** Into a free slot beside it, else into a cache of its own. */
  private fork(timeline: Timeline): Timeline {
    const { pool } = timeline;
    const target = pool.isFull
      ? this.pool(1, this.pools.get(pool) ?? {})
      : pool;
    return timeline.copyTo(target, slotOf(target));
  }

  private timelines(sessions: readonly Session[]): Timeline[] {
    return sessions.map(({ timeline }) => {
      timeline.checkIdle();
      if (!this.pools.has(timeline.pool)) {
        throw new ArgumentError('engine: a session belongs to another engine');
      }
      return timeline;
    });
  }
}

function slotOf(pool: SlotPool): number {
  const slot = pool.acquire();
  if (slot === undefined) throw new ArgumentError('internal: no free slot');
  return slot;
}

function checkPairs(
  name: string,
  sessions: readonly unknown[],
  others: readonly unknown[],
): void {
  if (sessions.length !== others.length) {
    throw new ArgumentError(
      `engine: ${name} must be given for each session, got ${others.length} for ${sessions.length}`,
    );
  }
}
