import type { MemoryStatistics } from '../backend';
import { ArgumentError } from '../errors';
import type { Model } from '../model/model';
import { Random } from '../random';
import { StopMatcher } from '../text/stop';
import type { StreamDecoder } from '../text/stream-decoder';
import type { Tokenizer } from '../text/tokenizer';
import { type DeviceGeneration, decode } from './decode';
import { type ExtendOptions, extendTimelines } from './extend';
import {
  checkSamplerOptions,
  History,
  needsHost,
  type Sampled,
  type SamplerOptions,
  sample,
  type TokenLogprob,
} from './sampler';
import { lockAll, type Timeline } from './timeline';

export interface GenerateOptions extends SamplerOptions {
  /** What the session takes in first; text needs a tokenizer. */
  readonly prompt?: string | ArrayLike<number>;
  /** Tokens to generate; as many as fit when left out. */
  readonly maxTokens?: number;
  /** Text that ends the generation and is not part of it. */
  readonly stop?: readonly string[];
  /** Tokens that end it; the model's, or else the tokenizer's, when left out. */
  readonly eos?: readonly number[];
  /** The same seed gives the same tokens; 0 to 2^32 - 1, random if left out. */
  readonly seed?: number;
  /** Ends the generation between tokens, or between chunks of the prompt. */
  readonly signal?: AbortSignal;
  /** Tokens of the prompt that run at a time. */
  readonly chunk?: number;
}

export interface TokenEvent extends TokenLogprob {
  /** Text that is now certain; what may begin a stop string comes later. */
  readonly text: string;
  readonly top?: readonly TokenLogprob[];
}

/**
 * `stop`: a stop string came. `eos`: an end token came; it is not part of the
 * session. `length`: `maxTokens` are generated. `capacity`: the session is
 * full. `abort`: the signal; before the first token the prompt is not taken in.
 */
export type EndReason = 'stop' | 'eos' | 'length' | 'capacity' | 'abort';

export interface Timings {
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** From the start until the logits behind the prompt were known. */
  readonly promptMs: number;
  readonly generatedTokens: number;
  /** From there to the end. */
  readonly generateMs: number;
  /** From the start to the first token; undefined where none came. */
  readonly timeToFirstTokenMs: number | undefined;
}

export interface EndEvent {
  readonly reason: EndReason;
  /** The stop string that came. */
  readonly stop?: string;
  /** Text that was held back and turned out to be none of a stop string. */
  readonly text: string;
  readonly timings: Timings;
  readonly memory: MemoryStatistics;
}

/** Tokens as they come, then one end. */
export type GenerateEvent = TokenEvent | EndEvent;

/** An event of one of several sessions. */
export interface BatchEvent {
  /** Which of the sessions. */
  readonly index: number;
  readonly event: GenerateEvent;
}

/** A timeline and how it is to go on. */
export interface GenerateRequest {
  readonly timeline: Timeline;
  readonly options: GenerateOptions;
}

/**
 * Generates on all timelines, one batch a token. Each timeline holds its prompt
 * and the tokens whose events were taken, wherever the caller stops.
 */
export async function* generateAll(
  model: Model,
  tokenizer: Tokenizer | undefined,
  requests: readonly GenerateRequest[],
): AsyncGenerator<BatchEvent, void, undefined> {
  const timelines = requests.map(({ timeline }) => timeline);
  lockAll(timelines);
  try {
    const all = requests.map(
      (request, index) => new Generation(model, tokenizer, request, index),
    );
    const usual = model.backend.chunk ?? 256;
    const chunk = Math.min(
      ...requests.map(({ options }) => options.chunk ?? usual),
    );
    let active = all;
    let options: ExtendOptions = { chunk };
    const isOnDevice = canDecode(model, requests);
    while (active.length > 0) {
      const logits = await extendTimelines(
        model,
        active.map((generation) => generation.extension()),
        options,
      );
      for (const [i, generation] of active.entries()) {
        yield* generation.step(logits[i]);
      }
      active = active.filter(({ hasEnded }) => !hasEnded);
      options = {};
      const [first] = active;
      if (first && isOnDevice) {
        return yield* decode(first.timeline.pool.steps, active);
      }
    }
  } finally {
    for (const timeline of timelines) timeline.unlock();
  }
}

/**
 * Whether the tokens behind the prompts can be chosen on the device: it
 * records, all timelines share a cache, and nothing is asked for that only the
 * host's sampler does.
 */
function canDecode(
  { backend, dtype }: Model,
  requests: readonly GenerateRequest[],
): boolean {
  const pools = new Set(requests.map(({ timeline }) => timeline.pool));
  const [pool] = pools;
  if (pools.size !== 1 || !pool?.steps.isPossible) return false;
  const { width } = pool.steps;
  const rows = requests.length;
  const specs = {
    logits: { shape: [rows, width], dtype },
    settings: { shape: [rows, 5], dtype: 'f32' },
  } as const;
  const isThere = backend.supports('sample', specs, { width }) === true;
  return isThere && requests.every(({ options }) => !needsHost(options));
}

/** One timeline's way from prompt to end. */
class Generation implements DeviceGeneration {
  hasEnded = false;
  readonly timeline: Timeline;
  private readonly options: GenerateOptions;
  private readonly prompt: ArrayLike<number>;
  private readonly history: History;
  private readonly random: Random;
  private readonly eos: ReadonlySet<number>;
  private readonly matcher: StopMatcher;
  private readonly decoder: StreamDecoder | undefined;
  private readonly startedAt = performance.now();
  private promptAt: number | undefined;
  private firstTokenAt: number | undefined;
  private generated = 0;

  constructor(
    private readonly model: Model,
    tokenizer: Tokenizer | undefined,
    { timeline, options }: GenerateRequest,
    private readonly index: number,
  ) {
    checkOptions(options, model, tokenizer);
    this.timeline = timeline;
    this.options = options;
    this.prompt = promptTokens(options.prompt ?? [], tokenizer, timeline);
    const before = [timeline.tokens(), this.prompt].flatMap((tokens) =>
      Array.from(tokens),
    );
    this.history = new History(before);
    this.random = Random.fromSeed(
      options.seed ?? Math.floor(Math.random() * 2 ** 32),
    );
    this.eos = new Set(options.eos ?? endTokens(model, tokenizer));
    this.matcher = new StopMatcher(options.stop ?? []);
    this.decoder = tokenizer?.streamDecoder({
      after: before.filter((token) => token < tokenizer.vocabularySize),
    });
  }

  /** What the timeline has to run before the next token. */
  extension() {
    return {
      timeline: this.timeline,
      tokens: this.promptAt === undefined ? this.prompt : [],
      signal: this.options.signal,
    };
  }

  /** One token, or the end, or both. */
  *step(logits: Float32Array | undefined): Generator<BatchEvent> {
    this.promptAt ??= performance.now();
    if (!logits) return yield this.end('abort');
    yield* this.endEarly();
    if (this.hasEnded) return;
    const { width } = this.timeline.pool.steps;
    const { history, options, random } = this;
    const sampled = sample(logits.subarray(0, width), history, options, random);
    yield* this.accept(sampled);
  }

  *endEarly(): Generator<BatchEvent> {
    if (this.hasEnded) return;
    if (this.options.signal?.aborted) yield this.end('abort');
    else if (this.generated >= this.most) yield this.end('length');
    else if (this.isFull(0)) yield this.end('capacity');
  }

  *accept(sampled: Sampled): Generator<BatchEvent> {
    if (sampled.token < 0) {
      throw new ArgumentError(
        'sampler: logits must not be NaN or +Infinity, got one on the device',
      );
    }
    if (this.eos.has(sampled.token)) return yield this.end('eos');
    yield this.take(sampled);
    if (this.matcher.matched !== undefined) return yield this.end('stop');
    if (this.generated >= this.most) yield this.end('length');
  }

  wants(ahead: number): boolean {
    return this.generated + ahead < this.most && !this.isFull(ahead);
  }

  settings(): readonly number[] {
    const { temperature = 1, topP = 1, minP = 0 } = this.options;
    const { width } = this.timeline.pool.steps;
    const topK = Math.min(this.options.topK ?? width, width);
    const random = temperature === 0 ? 0 : this.random.uniform();
    return [temperature, topK, topP, minP, random];
  }

  private get most(): number {
    return this.options.maxTokens ?? Number.POSITIVE_INFINITY;
  }

  private isFull(ahead: number): boolean {
    const { length, capacity } = this.timeline;
    return length + ahead >= capacity;
  }

  private take(sampled: Sampled): BatchEvent {
    const { token } = sampled;
    this.timeline.append(token);
    this.history.add(token);
    this.generated += 1;
    this.firstTokenAt ??= performance.now();
    const text = this.matcher.push(this.decoder?.push(token) ?? '');
    return { index: this.index, event: { ...sampled, text } };
  }

  private end(reason: EndReason): BatchEvent {
    this.hasEnded = true;
    const rest = this.matcher.push(this.decoder?.end() ?? '');
    const { matched } = this.matcher;
    const text = rest + this.matcher.end();
    return {
      index: this.index,
      event: {
        // What an incomplete character leaves may still complete a stop string.
        reason: matched === undefined ? reason : 'stop',
        ...(matched !== undefined && { stop: matched }),
        text,
        timings: this.timings(),
        memory: this.model.backend.memory(),
      },
    };
  }

  private timings(): Timings {
    const { startedAt, firstTokenAt } = this;
    const promptAt = this.promptAt ?? startedAt;
    return {
      promptTokens: this.prompt.length,
      promptMs: promptAt - startedAt,
      generatedTokens: this.generated,
      generateMs: performance.now() - promptAt,
      timeToFirstTokenMs:
        firstTokenAt === undefined ? undefined : firstTokenAt - startedAt,
    };
  }
}

function checkOptions(
  options: GenerateOptions,
  { config }: Model,
  tokenizer: Tokenizer | undefined,
): void {
  checkSamplerOptions(options, config.vocabularySize);
  const { maxTokens, seed, stop = [] } = options;
  const integer = (name: string, value: number | undefined, most: number) => {
    if (value === undefined) return;
    if (!Number.isSafeInteger(value) || value < 0 || value > most) {
      throw new ArgumentError(
        `generate: ${name} must be an integer from 0 to ${most}, got ${value}`,
      );
    }
  };
  integer('maxTokens', maxTokens, Number.MAX_SAFE_INTEGER);
  integer('seed', seed, 2 ** 32 - 1);
  if (stop.length > 0 && !tokenizer) {
    throw new ArgumentError(
      'generate: stop strings need a tokenizer, got none',
    );
  }
}

function promptTokens(
  prompt: string | ArrayLike<number>,
  tokenizer: Tokenizer | undefined,
  timeline: Timeline,
): ArrayLike<number> {
  if (typeof prompt !== 'string') return prompt;
  if (!tokenizer) {
    throw new ArgumentError('generate: a prompt of text needs a tokenizer');
  }
  return tokenizer.encode(prompt, { addSpecialTokens: timeline.length === 0 });
}

function endTokens(model: Model, tokenizer: Tokenizer | undefined): number[] {
  const { eos } = model.config;
  if (eos.length > 0) return eos;
  return tokenizer?.eosId === undefined ? [] : [tokenizer.eosId];
}
