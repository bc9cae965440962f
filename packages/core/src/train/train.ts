import { ArgumentError, CheckpointError } from '../errors';
import {
  evaluateDocuments,
  type Perplexity,
  type PerplexityOptions,
} from '../eval/perplexity';
import type { Folder } from '../io/files';
import { hasCheckpoint, type SaveCheckpointOptions } from './checkpoint';
import type { Documents } from './documents';
import type { StepEvent, Trainer } from './trainer';

/** The model on text that it does not train on, behind `step`. */
export interface EvaluationEvent extends Perplexity {
  readonly kind: 'evaluation';
  readonly step: number;
}

/** A checkpoint is on disk. */
export interface CheckpointEvent {
  readonly kind: 'checkpoint';
  readonly step: number;
}

/** The last event of a run. */
export interface TrainEndEvent {
  readonly kind: 'end';
  readonly step: number;
  readonly reason: 'done' | 'aborted';
}

/** Plain data, so that `JSON.stringify` makes a line of a log of each. */
export type TrainEvent =
  | StepEvent
  | EvaluationEvent
  | CheckpointEvent
  | TrainEndEvent;

export interface TrainOptions {
  /** Step to stop behind; the configuration's `steps` when left out. */
  readonly until?: number;
  /** Finishes the current step, saves, and stops. */
  readonly signal?: AbortSignal;
  readonly evaluation?: PerplexityOptions & {
    readonly documents: Documents;
    /** Steps between two. The last step is evaluated too. */
    readonly every: number;
  };
  readonly checkpoints?: SaveCheckpointOptions & {
    readonly folder: Folder;
    /** Steps between two. The last step is saved too. */
    readonly every: number;
  };
}

/**
 * Runs a trainer to its end, one event at a time. A reader that stops reading
 * stops the run without a checkpoint; `signal` stops it with one.
 * @throws LossError when the loss is lost, CheckpointError when the disk fails
 *   or a new run's folder holds another run: earlier checkpoints are whole.
 */
export async function* train(
  trainer: Trainer,
  options: TrainOptions = {},
): AsyncGenerator<TrainEvent, void, undefined> {
  const { until = trainer.config.steps, signal } = options;
  const { evaluation, checkpoints } = options;
  checkInterval('evaluation', evaluation?.every);
  checkInterval('checkpoints', checkpoints?.every);
  if (checkpoints) await checkFolder(trainer, checkpoints.folder);
  const isDue = (every: number) =>
    trainer.steps % every === 0 || trainer.steps >= until;
  while (trainer.steps < until && !signal?.aborted) {
    const event = await trainer.step();
    yield event;
    const { step } = event;
    if (evaluation && isDue(evaluation.every)) {
      const { documents, ...how } = evaluation;
      trainer.freeRecording();
      const found = await evaluateDocuments(trainer.model, documents, how);
      yield { kind: 'evaluation', step, ...found };
    }
    if (checkpoints && (isDue(checkpoints.every) || signal?.aborted)) {
      await trainer.save(checkpoints.folder, checkpoints);
      yield { kind: 'checkpoint', step };
    }
    await breathe();
  }
  const reason = trainer.steps < until ? 'aborted' : 'done';
  yield { kind: 'end', step: trainer.steps, reason };
}

/** Lets timers and signals through between steps that never really wait. */
function breathe(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, 0);
  });
}

function checkInterval(name: string, every: number | undefined): void {
  if (every === undefined || (Number.isSafeInteger(every) && every > 0)) return;
  throw new ArgumentError(
    `train: ${name}.every must be a positive integer, got ${every}`,
  );
}

async function checkFolder(trainer: Trainer, folder: Folder): Promise<void> {
  if (trainer.steps > 0 || !(await hasCheckpoint(folder))) return;
  throw new CheckpointError(
    folder.path,
    undefined,
    'holds checkpoints of another run; resume it or give another folder',
  );
}
