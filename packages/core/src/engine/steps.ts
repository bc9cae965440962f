import type { Recording } from '../backend';
import { ArgumentError } from '../errors';
import type { Batch } from '../model/batch';
import type { Cache } from '../model/cache';
import type { Model } from '../model/model';
import { sample } from '../ops/sample';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';

/** The slots that take one token each, and how many tokens each has. */
export interface StepPlace {
  readonly slots: readonly number[];
  readonly pasts: readonly number[];
}

/** Tokens of the host, or rows of a tensor on the device. */
export type StepTokens =
  | readonly number[]
  | { readonly from: Tensor; readonly rows: readonly number[] };

/**
 * Recordings that are kept of one cache, and more for each of its slots; those
 * used longest ago go.
 */
const MOST = { cache: 16, slot: 8 } as const;
/** Columns of the settings of `sample`. */
const SETTINGS = 5;

/**
 * Decoding on a backend that records: a step's commands are enqueued by the
 * layers once, and again for every later step that decides the same. Only the
 * index tensors are written in between.
 */
export class Steps {
  /** The last used first. */
  private recorded: Step[] = [];

  /** @param width tokens below it can be chosen. */
  constructor(
    private readonly model: Model,
    private readonly cache: Cache,
    readonly width: number,
  ) {}

  /** The backend records. */
  get isPossible(): boolean {
    return this.model.backend.record !== undefined;
  }

  /**
   * Enqueues one token a slot, where `isPossible`. What the step gives holds
   * until the next call.
   * @param settings of the operator `sample`, five numbers a token; the best
   *   token is chosen when they are left out.
   */
  run(
    place: StepPlace,
    tokens: StepTokens,
    settings: readonly number[] = place.slots.flatMap(() => [0, 1, 1, 0, 0]),
  ): Step {
    const found = this.recorded.find((step) => step.moveTo(place, tokens));
    const step =
      found ?? new Step(this.model, this.cache, this.width, place, tokens);
    if (!step.run(tokens, settings)) {
      // Memory that it uses is gone.
      this.drop(step);
      return this.run(place, tokens, settings);
    }
    this.use(step);
    return step;
  }

  /** The tokens that a step chose and their log-probabilities, in pairs. */
  async read(step: Step): Promise<ArrayLike<number>> {
    return this.model.backend.read(step.chosen.storage);
  }

  free(): void {
    for (const step of this.recorded) step.free();
    this.recorded = [];
  }

  private use(step: Step): void {
    if (this.recorded[0] === step) return;
    this.recorded = [step, ...this.recorded.filter((other) => other !== step)];
    const most = MOST.cache + MOST.slot * this.cache.slots;
    for (const old of this.recorded.slice(most)) {
      if (old.holders === 0) this.drop(old);
    }
  }

  private drop(step: Step): void {
    this.recorded = this.recorded.filter((other) => other !== step);
    step.free();
  }
}

/** What a step leaves on the device. */
interface Results {
  /** `[S, V]`: logits behind each token. */
  readonly logits: Tensor;
  /** i32 `[S]`: the tokens that were chosen from them. */
  readonly tokens: Tensor;
  /** `[S, 2]`: the same, and their log-probabilities. */
  readonly chosen: Tensor;
}

/** The commands of one step, recorded when it runs for the first time. */
export class Step {
  private readonly scope: Scope;
  private readonly batch: Batch;
  private readonly slots: readonly number[];
  private readonly settings: Tensor;
  /** Those who have yet to read or use its results: it must stay for them. */
  holders = 0;
  private recording: Recording | undefined;
  private results: Results | undefined;

  constructor(
    private readonly model: Model,
    private readonly cache: Cache,
    private readonly width: number,
    { slots, pasts }: StepPlace,
    tokens: StepTokens,
  ) {
    this.slots = [...slots];
    this.scope = new Scope(model.backend);
    this.batch = model.batch(
      pasts.map((past, i) => ({ tokens: [hostToken(tokens, i)], past })),
    );
    const shape = [slots.length, SETTINGS];
    this.settings = this.scope.empty(shape, 'f32');
  }

  get logits(): Tensor {
    return this.result('logits');
  }

  get tokens(): Tensor {
    return this.result('tokens');
  }

  get chosen(): Tensor {
    return this.result('chosen');
  }

  /** Stands at another place; false where that needs other commands. */
  moveTo({ slots, pasts }: StepPlace, tokens: StepTokens): boolean {
    const isSame =
      slots.length === this.slots.length &&
      slots.every((slot, i) => slot === this.slots[i]);
    return (
      isSame && this.batch.moveTo(pasts, 'from' in tokens ? undefined : tokens)
    );
  }

  /** Enqueues it where it stands; false where memory that it uses was freed. */
  run(tokens: StepTokens, settings: readonly number[]): boolean {
    const { backend } = this.model;
    backend.write(this.settings.storage, Float32Array.from(settings));
    if ('from' in tokens) this.batch.take(tokens.from, tokens.rows);
    if (this.recording) return this.recording.replay();
    try {
      this.recording = backend.record?.(() => this.enqueue());
    } catch (error) {
      this.free();
      throw error;
    }
    return true;
  }

  free(): void {
    this.scope.free();
    this.batch.free();
    this.recording?.free();
  }

  private enqueue(): void {
    const { model, cache, scope, slots, width, settings } = this;
    const hidden = model.forward(scope, this.batch, {
      cache: { cache, slots },
    });
    const logits = model.logits(scope, hidden);
    this.results = {
      logits,
      ...scope.run(sample, { logits, settings }, { width }),
    };
  }

  private result(name: keyof Results): Tensor {
    if (!this.results)
      throw new ArgumentError('internal: the step has not run');
    return this.results[name];
  }
}

/** A token in its place; those on the device are taken when the step runs. */
function hostToken(tokens: StepTokens, index: number): number {
  return 'from' in tokens ? 0 : (tokens[index] ?? 0);
}
