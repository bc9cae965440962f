import { Tape } from '../autograd';
import type { FloatType } from '../dtype';
import type { BatchPart } from '../model/batch';
import type { Model } from '../model/model';
import { add } from '../ops/add';
import { cast } from '../ops/cast';
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
    const loss = lossOf(scope, model, batch, examples);
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
 * @returns `loss [N]` in nats, and the gradients; both are the caller's.
 */
export function backpropagate(
  model: Model,
  examples: readonly Example[],
  share: number,
): { loss: Tensor; gradients: Gradients } {
  const pass = new Pass(model, examples);
  try {
    return { loss: pass.loss, gradients: toEnd(pass.backward(share)) };
  } catch (error) {
    pass.loss.free();
    throw error;
  } finally {
    pass.free();
  }
}

/** One pass in two halves, so that other backends can be given theirs between. */
export class Pass {
  /** `[N]` in nats; the caller's. */
  readonly loss: Tensor;
  private readonly tape = new Tape();
  private readonly scope: Scope;
  private readonly batch: ReturnType<Model['batch']>;

  /** Enqueues the forward half. */
  constructor(
    private readonly model: Model,
    examples: readonly Example[],
  ) {
    this.scope = new Scope(model.backend, this.tape);
    this.batch = model.batch(examples);
    try {
      this.tape.watch(...model.parameters.values());
      this.loss = lossOf(this.scope, model, this.batch, examples);
    } catch (error) {
      this.free();
      throw error;
    }
    this.scope.keep(this.loss);
  }

  /** Enqueues the other half, an operator a step; the gradients are the caller's. */
  *backward(share: number): Steps<Gradients> {
    const { loss, model, scope, tape } = this;
    const seed = scope.tensor(filled(loss, share), loss.shape, loss.dtype);
    const parameters = [...model.parameters.values()];
    const found = yield* tape.backwardInSteps(loss, seed, parameters);
    const gradients: Gradients = new Map();
    for (const [name, parameter] of model.parameters) {
      const gradient = found.get(parameter);
      if (gradient) gradients.set(name, gradient);
    }
    return gradients;
  }

  free(): void {
    this.scope.free();
    this.batch.free();
  }
}

/**
 * Adds gradients to a running sum in f32 (f64); a first one stays as it is. Takes
 * `gradients` over: they end in the sum or are freed.
 */
export function accumulate(sum: Gradients, gradients: Gradients): void {
  try {
    for (const [name, gradient] of gradients) addTo(sum, name, gradient);
  } catch (error) {
    freeAll(gradients);
    throw error;
  }
}

function addTo(sum: Gradients, name: string, gradient: Tensor): void {
  const before = sum.get(name);
  if (!before) {
    sum.set(name, gradient);
    return;
  }
  const scope = new Scope(gradient.backend);
  try {
    const [a, b] = [widen(scope, before), widen(scope, gradient)];
    sum.set(name, scope.keep(scope.run(add, { a, b }, {}).y));
    before.free();
    gradient.free();
  } finally {
    scope.free();
  }
}

export function freeAll(tensors: ReadonlyMap<string, Tensor>): void {
  for (const tensor of tensors.values()) tensor.free();
}

/** `loss [N]` */
function lossOf(
  scope: Scope,
  model: Model,
  batch: ReturnType<Model['batch']>,
  examples: readonly Example[],
): Tensor {
  const ids = new Int32Array(batch.tokens.length);
  examples.forEach(({ targets }, i) => {
    ids.set(targets, batch.starts[i]);
  });
  const hidden = model.forward(scope, batch);
  const logits = model.logits(scope, hidden);
  const targets = scope.indices(ids);
  return scope.run(crossEntropy, { logits, targets }, {}).loss;
}

function filled(like: Tensor, value: number): Float32Array | Float64Array {
  return like.dtype === 'f64'
    ? new Float64Array(like.size).fill(value)
    : new Float32Array(like.size).fill(value);
}

function widen(scope: Scope, gradient: Tensor): Tensor {
  const dtype = statisticType(gradient.dtype as FloatType);
  if (gradient.dtype === dtype) return gradient;
  return scope.run(cast, { x: gradient }, { dtype }).y;
}
