import type { Recording } from '../backend';
import type { Batch } from '../model/batch';
import type { Cache } from '../model/cache';
import type { Model } from '../model/model';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';

/** The slots that take one token each, and how many tokens each has. */
export interface StepPlace {
  readonly slots: readonly number[];
  readonly pasts: readonly number[];
}

/** Recordings that are kept of one cache, the least used go. */
const MOST = 24;

/**
 * Decoding on a backend that records: a step's commands are enqueued by the
 * layers once, and again for every later step that decides the same. Only the
 * index tensors are written in between.
 */
export class Steps {
  /** The last used first. */
  private recorded: Step[] = [];

  constructor(
    private readonly model: Model,
    private readonly cache: Cache,
  ) {}

  /** The backend records. */
  get isPossible(): boolean {
    return this.model.backend.record !== undefined;
  }

  /**
   * Enqueues one token a slot, where `isPossible`. What the step gives holds
   * until the next call.
   */
  run(place: StepPlace, tokens: readonly number[]): Step {
    const found = this.recorded.find((step) => step.moveTo(place, tokens));
    if (found?.replay()) {
      this.use(found);
      return found;
    }
    if (found) this.drop(found);
    const step = new Step(this.model, this.cache, place, tokens);
    this.use(step);
    for (const old of this.recorded.slice(MOST)) this.drop(old);
    return step;
  }

  free(): void {
    for (const step of this.recorded) step.free();
    this.recorded = [];
  }

  private use(step: Step): void {
    if (this.recorded[0] === step) return;
    this.recorded = [step, ...this.recorded.filter((other) => other !== step)];
  }

  private drop(step: Step): void {
    this.recorded = this.recorded.filter((other) => other !== step);
    step.free();
  }
}

/** The commands of one step, and the tensors that it leaves. */
export class Step {
  private readonly scope: Scope;
  private readonly batch: Batch;
  private readonly slots: readonly number[];
  private readonly recording: Recording;
  /** `[S, V]`: logits behind each token. */
  readonly logits: Tensor;

  /** Records the step and runs it for the first time. */
  constructor(
    model: Model,
    cache: Cache,
    { slots, pasts }: StepPlace,
    tokens: readonly number[],
  ) {
    const { backend } = model;
    this.slots = [...slots];
    this.scope = new Scope(backend);
    this.batch = model.batch(
      tokens.map((token, i) => ({ tokens: [token], past: pasts[i] ?? 0 })),
    );
    let logits: Tensor | undefined;
    try {
      const recording = backend.record?.(() => {
        const hidden = model.forward(this.scope, this.batch, {
          cache: { cache, slots: this.slots },
        });
        logits = model.logits(this.scope, hidden);
      });
      if (!recording || !logits) throw new Error('internal: nothing recorded');
      this.recording = recording;
      this.logits = logits;
    } catch (error) {
      this.scope.free();
      this.batch.free();
      throw error;
    }
  }

  /** Lays other tokens out; false where they need other commands. */
  moveTo({ slots, pasts }: StepPlace, tokens: readonly number[]): boolean {
    const isSame =
      slots.length === this.slots.length &&
      slots.every((slot, i) => slot === this.slots[i]);
    return isSame && this.batch.moveTo(pasts, tokens);
  }

  replay(): boolean {
    return this.recording.replay();
  }

  free(): void {
    this.scope.free();
    this.batch.free();
    this.recording.free();
  }
}
