import type { Recording } from '../backend';
import { ArgumentError, OutOfMemoryError } from '../errors';
import type { Model } from '../model/model';
import {
  type Example,
  enqueuePass,
  freeAll,
  lengthsOf,
  PassInputs,
  type PassResults,
} from './loss';

/**
 * A model's passes as recordings: the commands of one serve all whose sequences
 * have the same lengths. A recording keeps the memory of its pass, so there is
 * one at most, made when the same lengths come again; later, where the last one
 * was made in vain.
 */
export class RecordedPasses {
  private known: RecordedPass | undefined;
  private lastLengths: string | undefined;
  /** How often the last lengths have come again, and have to. */
  private repeats = 0;
  private wanted = 1;
  private isPossible: boolean;

  constructor(private readonly model: Model) {
    const { record, isRecordingCompact = false } = model.backend;
    this.isPossible = record !== undefined && isRecordingCompact;
  }

  /**
   * Enqueues a pass from its recording, or makes one; nothing is done where it
   * has to be enqueued otherwise. What it gives holds until the next call, and
   * stays its own.
   * @param share what each counted target adds to the gradient.
   */
  run(examples: readonly Example[], share: number): PassResults | undefined {
    if (!this.isPossible) return undefined;
    if (this.known?.replay(examples, share)) return this.known.results;
    const lengths = lengthsOf(examples);
    const isAgain = lengths === this.lastLengths;
    if (this.known && !isAgain && !this.known.isReplayed) this.wanted *= 2;
    this.free();
    this.lastLengths = lengths;
    this.repeats = isAgain ? this.repeats + 1 : 0;
    if (this.repeats < this.wanted) return undefined;
    try {
      this.known = new RecordedPass(this.model, examples, share);
      return this.known.results;
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error;
      this.stop();
      return undefined;
    }
  }

  /** Gives the recording's memory back; the same lengths make another one. */
  free(): void {
    this.known?.free();
    this.known = undefined;
  }

  /** Makes no more: there may be room without. False where it had made none. */
  stop(): boolean {
    const hadOne = this.known !== undefined;
    this.free();
    this.isPossible = false;
    return hadOne;
  }
}

class RecordedPass {
  readonly results: PassResults;
  isReplayed = false;
  private readonly inputs: PassInputs;
  private readonly recording: Recording;

  /** Enqueues it, too. */
  constructor(model: Model, examples: readonly Example[], share: number) {
    this.inputs = new PassInputs(model, examples, share);
    let results: PassResults | undefined;
    try {
      const recording = model.backend.record?.(() => {
        results = enqueuePass(model, this.inputs);
      });
      if (!recording || !results) {
        throw new ArgumentError('internal: the backend does not record');
      }
      this.recording = recording;
      this.results = results;
    } catch (error) {
      if (results) freeResults(results);
      this.inputs.free();
      throw error;
    }
  }

  /** False where lengths are others or memory that it uses was freed. */
  replay(examples: readonly Example[], share: number): boolean {
    const { inputs, recording } = this;
    if (!inputs.take(examples, share) || !recording.replay()) return false;
    this.isReplayed = true;
    return true;
  }

  free(): void {
    freeResults(this.results);
    this.inputs.free();
    this.recording.free();
  }
}

function freeResults({ loss, gradients }: PassResults): void {
  loss.free();
  freeAll(gradients);
}
