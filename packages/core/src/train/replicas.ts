import type { Backend } from '../backend';
import { ArgumentError } from '../errors';
import { Model } from '../model/model';
import { Scope } from '../scope';
import { byTurns } from '../steps';
import type { Tensor } from '../tensor';
import { transfer } from '../transfer';
import { GradientSum } from './gradient-sum';
import { type Example, Pass, PassInputs } from './loss';
import { RecordedPasses } from './recorded-pass';

/** A model, what it has of a step, and what it keeps for the next one. */
class Worker {
  /** The sum of the gradients of its passes. */
  readonly sum: GradientSum;
  readonly recorded: RecordedPasses;

  constructor(readonly model: Model) {
    this.sum = new GradientSum(model.backend);
    this.recorded = new RecordedPasses(model);
  }

  free(): void {
    this.sum.empty();
    this.recorded.free();
  }
}

/**
 * A model and its replicas on further backends, which share out the passes of a
 * step. The replicas are only as good as the last `copyWeights`.
 */
export class Replicas {
  /** That of the model itself, then those of the replicas. */
  readonly workers: readonly [Worker, ...Worker[]];

  /**
   * @throws ArgumentError where two would share a backend; OutOfMemoryError,
   *   and then nothing stays allocated.
   */
  constructor(model: Model, backends: readonly Backend[]) {
    const all = [model.backend, ...backends];
    if (new Set(all).size < all.length) {
      throw new ArgumentError(
        `train: each replica needs a backend of its own beside the model's, got one twice in ${all.length}`,
      );
    }
    const replicas: Model[] = [];
    try {
      for (const backend of backends) replicas.push(emptyLike(model, backend));
    } catch (error) {
      for (const replica of replicas) replica.free();
      throw error;
    }
    const others = replicas.map((replica) => new Worker(replica));
    this.workers = [new Worker(model), ...others];
  }

  /** Gives the replicas the model's weights. */
  async copyWeights(): Promise<void> {
    const { workers } = this;
    for (const [index, { model }] of workers.entries()) {
      if (index === 0) continue;
      // Those that have them pass them on: the ways from several cards are as
      // wide as those from one are together.
      const source = workers[index - 2 ** Math.floor(Math.log2(index))];
      if (source) await copyBetween(source.model, model);
    }
  }

  /** Records no more; false where nothing was recorded. */
  stopRecording(): boolean {
    const had = this.workers.map(({ recorded }) => recorded.stop());
    return had.includes(true);
  }

  /** Frees the replicas; the model stays its owner's. */
  free(): void {
    for (const worker of this.workers) worker.free();
    for (const { model } of this.workers.slice(1)) model.free();
  }
}

/**
 * Enqueues a pass for each of the first workers: those that are recorded at once.
 * A device takes a limited number of commands, and the host waits where one has
 * them: so of the others all forward halves come first, of which the host is done
 * sooner, and of the backward ones an operator of each pass by turns. No backend
 * runs out of work while another one is given some.
 * @param share what each counted target adds to the gradient.
 * @param losses gets that of each pass.
 * @param isLast no round of the step follows.
 */
export function enqueueRound(
  workers: readonly Worker[],
  passes: readonly (readonly Example[])[],
  share: number,
  losses: Tensor[],
  isLast: boolean,
): void {
  const begun: { pass: Pass; inputs: PassInputs; sum: GradientSum }[] = [];
  try {
    for (const [index, { model, sum, recorded }] of workers.entries()) {
      const examples = passes[index];
      if (!examples) break;
      const known = recorded.run(examples, share);
      if (known) {
        losses.push(copyOf(known.loss));
        sum.addBorrowed(known.gradients, isLast);
        continue;
      }
      const inputs = new PassInputs(model, examples, share);
      try {
        const pass = new Pass(model, inputs);
        begun.push({ pass, inputs, sum });
        losses.push(pass.loss);
      } catch (error) {
        inputs.free();
        throw error;
      }
    }
    byTurns(
      begun.map(({ pass }) => pass.backward()),
      (index, gradients) => {
        begun[index]?.pass.free();
        begun[index]?.sum.add(gradients);
      },
    );
  } finally {
    for (const { pass, inputs } of begun) {
      pass.free();
      inputs.free();
    }
  }
}

function copyOf(tensor: Tensor): Tensor {
  const scope = new Scope(tensor.backend);
  try {
    return scope.keep(scope.copyOf(tensor));
  } finally {
    scope.free();
  }
}

/**
 * Adds the gradients of all workers to those of the first one, in order. The
 * others are empty then.
 */
export async function gather([first, ...others]: readonly [
  Worker,
  ...Worker[],
]): Promise<void> {
  const to = first.model.backend;
  for (const { model, sum } of others) {
    await transfer(model.backend, to, additions(first, sum));
    sum.empty();
  }
}

/** A model of the same shapes and type; its weights are unspecified. */
function emptyLike(model: Model, backend: Backend): Model {
  const scope = new Scope(backend);
  try {
    const parameters = new Map(
      [...model.parameters].map(([name, { shape, dtype }]) => [
        name,
        scope.empty(shape, dtype),
      ]),
    );
    for (const tensor of parameters.values()) scope.keep(tensor);
    return new Model(backend, model.config, parameters);
  } finally {
    scope.free();
  }
}

function copyBetween(source: Model, target: Model): Promise<void> {
  const pairs = [...source.parameters].flatMap(([name, tensor]) => {
    const to = target.parameters.get(name);
    return to ? [[tensor, to] as const] : [];
  });
  return transfer(source.backend, target.backend, pairs);
}

/**
 * The pairs whose copies add gradients to a sum, one at a time: a second whole
 * set of them would not fit beside a large model.
 */
function* additions(
  { model: { backend }, sum }: Worker,
  { tensors }: GradientSum,
): Generator<readonly [source: Tensor, target: Tensor]> {
  for (const [name, gradient] of tensors) {
    const scope = new Scope(backend);
    try {
      const copy = scope.empty(gradient.shape, gradient.dtype);
      yield [gradient, copy];
      sum.add(new Map([[name, scope.keep(copy)]]));
    } finally {
      scope.free();
    }
  }
}
