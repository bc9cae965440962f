import { Tape } from '../autograd';
import type { DType } from '../dtype';
import { ArgumentError } from '../errors';
import type { BatchPart } from '../model/batch';
import type { Model } from '../model/model';
import { crossEntropy } from '../ops/cross-entropy';
import { statisticType } from '../ops/operator';
import { Scope } from '../scope';
import { type Steps, toEnd } from '../steps';
import type { Tensor } from '../tensor';

/** Tokens of one sequence, and what each has to predict; -1 is not counted. */
export interface Example extends BatchPart {
  readonly targets: ArrayLike<number>;
}

/** Tensors by parameter name. Whoever holds them frees them. */
export type Gradients = Map<string, Tensor>;

/** What a pass leaves on the device. */
export interface PassResults {
  /** `[N]` in nats. */
  readonly loss: Tensor;
  readonly gradients: Gradients;
}

/** Targets that count. */
export function countedTargets(examples: readonly Example[]): number {
  let count = 0;
  for (const { targets } of examples) {
    for (let i = 0; i < targets.length; i++) {
      if (targets[i] !== -1) count += 1;
    }
  }
  return count;
}

/**
 * Cross entropy of each target in nats, f64 on the host, in the order of the
 * examples; 0 where a target is not counted.
 */
export async function losses(
  model: Model,
  examples: readonly Example[],
): Promise<Float64Array> {
  const scope = new Scope(model.backend);
  const batch = model.batch(examples);
  try {
    const targets = scope.indices(targetsOf(examples));
    const loss = lossOf(scope, model, batch, targets);
    return Float64Array.from(await scope.read(loss));
  } finally {
    scope.free();
    batch.free();
  }
}

/**
 * Enqueues one forward and backward pass.
 * @param share what each counted target adds to the gradient: one over the
 *   targets of *all* passes that are summed makes their sum the gradient of
 *   the mean.
 * @returns the caller's.
 */
export function backpropagate(
  model: Model,
  examples: readonly Example[],
  share: number,
): PassResults {
  const inputs = new PassInputs(model, examples, share);
  try {
    return enqueuePass(model, inputs);
  } finally {
    inputs.free();
  }
}

/** The same over inputs that stay their owner's. */
export function enqueuePass(model: Model, inputs: PassInputs): PassResults {
  const pass = new Pass(model, inputs);
  try {
    return { loss: pass.loss, gradients: toEnd(pass.backward()) };
  } catch (error) {
    pass.loss.free();
    throw error;
  } finally {
    pass.free();
  }
}

/**
 * What a pass reads: tokens, targets, and what each counted target adds to the
 * gradient.
 */
export class PassInputs {
  readonly batch: ReturnType<Model['batch']>;
  /** i32 `[N]` */
  readonly targets: Tensor;
  /** `[N]`, the gradient of each loss. */
  readonly seed: Tensor;
  private readonly scope: Scope;
  private readonly lengths: string;

  constructor(
    private readonly model: Model,
    examples: readonly Example[],
    share: number,
  ) {
    this.lengths = lengthsOf(examples);
    this.scope = new Scope(model.backend);
    this.batch = model.batch(examples);
    try {
      this.targets = this.scope.indices(targetsOf(examples));
      const { size } = this.targets;
      const dtype = statisticType(model.dtype);
      this.seed = this.scope.tensor(filled(size, share, dtype), [size], dtype);
    } catch (error) {
      this.free();
      throw error;
    }
  }

  /**
   * Takes others in their place; false where not all are of the same lengths.
   * @throws ArgumentError for a token beyond the vocabulary, or another number
   *   of targets than tokens.
   */
  take(examples: readonly Example[], share: number): boolean {
    const { batch, model, seed, targets } = this;
    if (lengthsOf(examples) !== this.lengths) return false;
    for (const { tokens } of examples) model.checkTokens(tokens);
    const wanted = targetsOf(examples);
    const tokens = joined(examples.map((example) => example.tokens));
    if (!batch.moveTo(batch.pasts, tokens)) return false;
    const { backend } = model;
    backend.write(targets.storage, wanted);
    const { dtype, size } = seed;
    backend.write(seed.storage, filled(size, share, dtype));
    return true;
  }

  free(): void {
    this.scope.free();
    this.batch.free();
  }
}

/** One pass in two halves, so that other backends can be given theirs between. */
export class Pass {
  /** `[N]` in nats; the caller's. */
  readonly loss: Tensor;
  private readonly tape = new Tape();
  private readonly scope: Scope;

  /** Enqueues the forward half. The inputs stay their owner's. */
  constructor(
    private readonly model: Model,
    private readonly inputs: PassInputs,
  ) {
    this.scope = new Scope(model.backend, this.tape);
    try {
      this.tape.watch(...model.parameters.values());
      this.loss = lossOf(this.scope, model, inputs.batch, inputs.targets);
    } catch (error) {
      this.free();
      throw error;
    }
    this.scope.keep(this.loss);
  }

  /** Enqueues the other half, an operator a step; the gradients are the caller's. */
  *backward(): Steps<Gradients> {
    const { loss, model, tape, inputs } = this;
    const parameters = [...model.parameters.values()];
    const found = yield* tape.backwardInSteps(loss, inputs.seed, parameters);
    const gradients: Gradients = new Map();
    for (const [name, parameter] of model.parameters) {
      const gradient = found.get(parameter);
      if (gradient) gradients.set(name, gradient);
    }
    return gradients;
  }

  free(): void {
    this.scope.free();
  }
}

export function freeAll(tensors: ReadonlyMap<string, Tensor>): void {
  for (const tensor of tensors.values()) tensor.free();
}

/** The lengths of a pass's sequences, which decide all of its commands. */
export const lengthsOf = (examples: readonly Example[]): string =>
  examples.map(({ tokens, past = 0 }) => `${past}+${tokens.length}`).join();

/** `loss [N]` */
function lossOf(
  scope: Scope,
  model: Model,
  batch: ReturnType<Model['batch']>,
  targets: Tensor,
): Tensor {
  const hidden = model.forward(scope, batch);
  const logits = model.logits(scope, hidden);
  return scope.run(crossEntropy, { logits, targets }, {}).loss;
}

function targetsOf(examples: readonly Example[]): Int32Array {
  for (const { tokens, targets } of examples) {
    if (targets.length === tokens.length) continue;
    throw new ArgumentError(
      `train: each of ${tokens.length} tokens must have a target, got ${targets.length}`,
    );
  }
  return joined(examples.map(({ targets }) => targets));
}

/** Lists one behind another. */
function joined(lists: readonly ArrayLike<number>[]): Int32Array {
  const all = new Int32Array(
    lists.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const list of lists) {
    all.set(list, at);
    at += list.length;
  }
  return all;
}

const filled = (size: number, value: number, dtype: DType) =>
  dtype === 'f64'
    ? new Float64Array(size).fill(value)
    : new Float32Array(size).fill(value);
