import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import {
  ArgumentError,
  AsaError,
  ConfigError,
  OutOfMemoryError,
} from '../errors';
import type { Folder } from '../io/files';
import { loadModel } from '../io/model-folder';
import type { Model } from '../model/model';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { AdamW } from './adamw';
import { Batches } from './batches';
import {
  type CheckpointState,
  latestCheckpoint,
  readOptimizer,
  type SaveCheckpointOptions,
  saveCheckpoint,
} from './checkpoint';
import {
  parseTrainConfig,
  type TrainConfig,
  type TrainConfigInput,
} from './config';
import type { Documents } from './documents';
import { countedTargets, type Example } from './loss';
import { LossScale } from './loss-scale';
import { enqueueRound, gather, Replicas } from './replicas';
import { learningRate } from './schedule';

/** A loss that is not finite or jumped. The weights are those before the step. */
export class LossError extends AsaError {
  override readonly name = 'LossError';
  constructor(
    readonly step: number,
    rule: string,
  ) {
    super(
      `train: step ${step}: ${rule}; checkpoints are as they were, go on from the last one with a lower learning rate or other data`,
    );
  }
}

/** What one step did. Plain data: a line of a log. */
export interface StepEvent {
  readonly kind: 'step';
  /** Counts from 1. */
  readonly step: number;
  /** Mean cross entropy of the step's targets before the update, nats a token. */
  readonly loss: number;
  readonly learningRate: number;
  /** Global norm of the gradient before clipping. */
  readonly gradientNorm: number;
  /** What the loss was multiplied with; f16 only. */
  readonly lossScale?: number;
  /** Tokens that the run has learned from so far. */
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** Passes over the data that were begun, from 1. */
  readonly epoch: number;
}

export interface TrainerOptions {
  /**
   * Backends beside the model's own. Each gets a replica of the model, and the
   * passes of a step are dealt to all of them by turns.
   */
  readonly replicas?: readonly Backend[] | undefined;
}

/** Share of the old running mean of the loss that a step leaves. */
const smoothing = 0.98;

/**
 * Trains one model in place. The same configuration, data, parameters and
 * backends give the same bits, whether or not the run was interrupted. With the
 * same `microRows`, how many backends there are only changes in which order
 * gradients are added, and not even that where none has more than one pass.
 */
export class Trainer {
  readonly config: TrainConfig;
  readonly optimizer: AdamW;
  private readonly batches: Batches;
  /** f16 gradients underflow without. */
  private readonly lossScale: LossScale | undefined;
  private readonly data: string;
  private readonly replicas: Replicas;
  /** Rows of one pass. */
  private readonly passRows: number;
  private done = 0;
  private tokens = 0;
  /** Running mean of the loss, nats. */
  private usualLoss: number | null = null;

  /**
   * @throws ConfigError when the configuration breaks a rule or asks for more
   *   context than the model has, or leaves a backend without a pass;
   *   ArgumentError when the data do not fill one step's rows, or two replicas
   *   are on one backend.
   */
  constructor(
    readonly model: Model,
    documents: Documents,
    config: TrainConfigInput,
    { replicas = [] }: TrainerOptions = {},
  ) {
    this.config = parseTrainConfig(config);
    this.passRows = passRows(this.config, 1 + replicas.length);
    const { context, seed, rows } = this.config;
    if (context > model.config.context) {
      throw new ConfigError(
        'train config',
        'context',
        `must be at most the model's ${model.config.context}, got ${context}`,
      );
    }
    this.batches = new Batches(documents, { context, seed });
    if (this.batches.rowsInEpoch < rows) {
      throw new ArgumentError(
        `train: the data must fill the ${rows} rows of a step, got ${this.batches.rowsInEpoch} rows of ${context} tokens`,
      );
    }
    this.data = documents.fingerprint();
    this.lossScale =
      model.dtype === 'f16' ? new LossScale(this.config.lossScale) : undefined;
    const { beta1, beta2, eps, weightDecay, decay, clip } = this.config;
    this.replicas = new Replicas(model, replicas);
    try {
      this.optimizer = new AdamW(model, {
        beta1,
        beta2,
        eps,
        weightDecay,
        decay,
        clip: clip ?? undefined,
      });
    } catch (error) {
      this.replicas.free();
      throw error;
    }
  }

  /**
   * Loads the last checkpoint of a folder, model included; free `model` and
   * the trainer. The configuration may differ in `steps` only, and there may be
   * other replicas, which changes the rounding of sums.
   * @param dtype of the weights that compute: as in the run.
   * @throws CheckpointError when there is none or it is damaged, ConfigError
   *   when configuration, data or type are not those that it was made with.
   */
  static async resume(
    folder: Folder,
    backend: Backend,
    documents: Documents,
    config: TrainConfigInput,
    dtype: FloatType = 'f32',
    options?: TrainerOptions,
  ): Promise<Trainer> {
    const { version, state } = await latestCheckpoint(folder);
    const { model } = await loadModel(version, backend, { dtype });
    let trainer: Trainer | undefined;
    try {
      trainer = new Trainer(model, documents, config, options);
      trainer.checkSameRun(state, version.path);
      await readOptimizer(version, trainer.optimizer);
      trainer.optimizer.roundMasters();
      trainer.batches.seek(state.position);
      trainer.done = state.step;
      trainer.tokens = state.tokens;
      trainer.usualLoss = state.usualLoss;
      if (state.lossScale) trainer.lossScale?.restore(state.lossScale);
      return trainer;
    } catch (error) {
      trainer?.free();
      model.free();
      throw error;
    }
  }

  /** Steps done. */
  get steps(): number {
    return this.done;
  }

  /**
   * One step: forward and backward over the next rows, clipping, update.
   * Where an f16 gradient overflows, the same rows run again with half the
   * loss scale.
   * @throws LossError when loss or gradient are not finite, or the loss jumped;
   *   the weights are then as before.
   */
  async step(): Promise<StepEvent> {
    const began = performance.now();
    const { rows, schedule, steps } = this.config;
    const step = this.done + 1;
    const taken = this.batches.take(rows);
    const passes = chunks(taken, this.passRows).map((some) => some.flat());
    const targets = countedTargets(passes.flat());
    const rate = learningRate(schedule, step, steps);
    const found = await this.update(passes, targets, {
      step,
      learningRate: rate,
    });
    this.done = step;
    this.tokens += targets;
    return {
      kind: 'step',
      step,
      learningRate: rate,
      ...found,
      tokens: this.tokens,
      tokensPerSecond: (1000 * targets) / (performance.now() - began),
      epoch: this.batches.position.epoch + 1,
    };
  }

  /** Saves all that `resume` needs. A crash leaves the last one or this one. */
  async save(folder: Folder, options?: SaveCheckpointOptions): Promise<void> {
    await saveCheckpoint(
      folder,
      this.model,
      this.optimizer,
      this.state,
      options,
    );
  }

  /**
   * Gives back what is kept on the model's own backend between steps, the memory
   * of a pass where that records: before other work there that needs much. The
   * next step takes it again.
   */
  freeRecording(): void {
    const [{ recorded }] = this.replicas.workers;
    recorded.free();
  }

  /** Frees optimizer and replicas; the model stays its owner's. */
  free(): void {
    this.optimizer.free();
    this.replicas.free();
  }

  private get state(): CheckpointState {
    return {
      step: this.done,
      tokens: this.tokens,
      usualLoss: this.usualLoss,
      dtype: this.model.dtype,
      lossScale: this.lossScale?.state,
      position: this.batches.position,
      config: this.config,
      data: this.data,
    };
  }

  private async update(
    passes: readonly (readonly Example[])[],
    targets: number,
    at: { step: number; learningRate: number },
  ): Promise<Pick<StepEvent, 'loss' | 'gradientNorm' | 'lossScale'>> {
    // Before each step, and not behind it: whatever became of the last one, and
    // whoever wrote the model's weights since, the replicas have them.
    await this.replicas.copyWeights();
    for (;;) {
      try {
        const found = await this.attempt(passes, targets, at);
        if (found) return found;
      } catch (error) {
        // A recording gives no memory back in between.
        const isFull = error instanceof OutOfMemoryError;
        if (!isFull || !this.replicas.stopRecording()) throw error;
      }
    }
  }

  /** Nothing when the gradient overflowed and a smaller loss scale may help. */
  private async attempt(
    passes: readonly (readonly Example[])[],
    targets: number,
    at: { step: number; learningRate: number },
  ): Promise<
    Pick<StepEvent, 'loss' | 'gradientNorm' | 'lossScale'> | undefined
  > {
    const scope = new Scope(this.model.backend);
    const lossScale = this.lossScale?.value;
    const scale = lossScale ?? 1;
    const { workers } = this.replicas;
    const [{ sum }] = workers;
    const parts: Tensor[] = [];
    try {
      // No wait in between: all backends work at the same time.
      const rounds = chunks(passes, workers.length);
      for (const [index, round] of rounds.entries()) {
        const isLast = index === rounds.length - 1;
        enqueueRound(workers, round, scale / targets, parts, isLast);
      }
      await gather(workers);
      const { tensors } = sum;
      const norm = this.optimizer.squaredNorm(scope, tensors);
      const scaled = { ...at, lossScale };
      const update = this.optimizer.prepareUpdate(tensors, norm, scaled);
      const loss = (await total(scope, parts)) / targets;
      const squared = (await scope.read(norm))[0] ?? 0;
      const gradientNorm = Math.sqrt(squared) / scale;
      const isOverflow = Number.isFinite(loss) && !Number.isFinite(squared);
      if (isOverflow && this.lossScale?.shrink()) return undefined;
      this.checkLoss(at.step, loss, gradientNorm);
      update();
      this.lossScale?.grow();
      return { loss, gradientNorm, ...(lossScale && { lossScale }) };
    } finally {
      for (const worker of workers) worker.sum.empty();
      for (const part of parts) part.free();
      scope.free();
    }
  }

  private checkLoss(step: number, loss: number, gradientNorm: number): void {
    if (!Number.isFinite(loss)) {
      throw new LossError(step, `the loss must be finite, got ${loss}`);
    }
    if (!Number.isFinite(gradientNorm)) {
      throw new LossError(
        step,
        `the gradient norm must be finite, got ${gradientNorm}`,
      );
    }
    const usual = this.usualLoss ?? loss;
    const { spike } = this.config;
    if (spike !== undefined && loss > usual + spike) {
      throw new LossError(
        step,
        `the loss must stay within ${spike} nats of its mean ${usual}, got ${loss}`,
      );
    }
    this.usualLoss = smoothing * usual + (1 - smoothing) * loss;
  }

  private checkSameRun(saved: CheckpointState, path: string): void {
    const [mine, theirs]: Record<string, unknown>[] = [
      { ...this.config },
      { ...saved.config },
    ];
    for (const field of Object.keys({ ...mine, ...theirs })) {
      const [now, then] = [mine, theirs].map((c) => JSON.stringify(c?.[field]));
      if (field !== 'steps' && now !== then) {
        throw new ConfigError(
          path,
          field,
          `must be as in the checkpoint, ${then}, to go on with it, got ${now}`,
        );
      }
    }
    const { dtype } = this.model;
    if (saved.dtype !== dtype) {
      throw new ConfigError(
        path,
        'dtype',
        `must be as in the checkpoint, ${saved.dtype}, to go on with it, got ${dtype}`,
      );
    }
    if (saved.data !== this.data) {
      throw new ConfigError(
        path,
        'data',
        `must be the checkpoint's documents, fingerprint ${saved.data}, got ${this.data}`,
      );
    }
  }
}

/** Rows of one pass, so that every backend has one. */
function passRows({ rows, microRows }: TrainConfig, backends: number): number {
  if (rows < backends) {
    throw new ConfigError(
      'train config',
      'rows',
      `must be at least one for each of ${backends} backends, got ${rows}`,
    );
  }
  const size = microRows ?? Math.floor(rows / backends);
  const passes = Math.ceil(rows / size);
  if (passes >= backends) return size;
  throw new ConfigError(
    'train config',
    'microRows',
    `must cut a step's ${rows} rows into a pass for each of ${backends} backends, got ${size}, which makes ${passes}; leave it out or take ${Math.floor(rows / backends)}`,
  );
}

/** The sum of all elements, in f64. */
async function total(
  scope: Scope,
  tensors: readonly Tensor[],
): Promise<number> {
  let sum = 0;
  for (const tensor of tensors) {
    for (const value of await scope.read(tensor)) sum += value;
  }
  return sum;
}

function chunks<T>(list: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, i) =>
    list.slice(i * size, (i + 1) * size),
  );
}
