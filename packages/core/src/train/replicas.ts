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

/** A model and what it has of a step. */
class Share {
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
  readonly shares: readonly [Share, ...Share[]];

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
    const others = replicas.map((replica) => new Share(replica));
    this.shares = [new Share(model), ...others];
  }

  /** Gives the replicas the model's weights. */
  async copyWeights(): Promise<void> {
    const { shares } = this;
    for (const [index, { model }] of shares.entries()) {
      if (index === 0) continue;
      // Those that have them pass them on: the ways from several cards are as
      // wide as those from one are together.
      const source = shares[index - 2 ** Math.floor(Math.log2(index))];
      if (source) await copyBetween(source.model, model);
    }
  }

  /** Gives the recordings' memory back. */
  freeRecordings(): void {
    for (const { recorded } of this.shares) recorded.free();
  }

  /** Frees the replicas; the model stays its owner's. */
  free(): void {
    for (const share of this.shares) share.free();
    for (const { model } of this.shares.slice(1)) model.free();
  }
}

/**
 * Enqueues a pass for each of the first shares: those that are recorded at once.
 * A device takes a limited number of commands, and the host waits where one has
 * them: so of the others all forward halves come first, of which the host is done
 * sooner, and of the backward ones an operator of each pass by turns. No backend
 * runs out of work while another one is given some.
 * @param weight what each counted target adds to the gradient.
 * @param losses gets that of each pass.
 * @param isLast no round of the step follows.
 */
export function enqueueRound(
  shares: readonly Share[],
  passes: readonly (readonly Example[])[],
  weight: number,
  losses: Tensor[],
  isLast: boolean,
): void {
  const begun: { pass: Pass; inputs: PassInputs; sum: GradientSum }[] = [];
  try {
    for (const [index, { model, sum, recorded }] of shares.entries()) {
      const examples = passes[index];
      if (!examples) break;
      const known = recorded.run(examples, weight);
      if (known) {
        losses.push(copyOf(known.loss));
        sum.addBorrowed(known.gradients, isLast);
        continue;
      }
      const inputs = new PassInputs(model, examples, weight);
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

function copyOf({ backend, shape, dtype, storage, size }: Tensor): Tensor {
  const scope = new Scope(backend);
  const copy = scope.keep(scope.empty(shape, dtype));
  backend.copy(storage, 0, copy.storage, 0, size);
  return copy;
}

/**
 * Adds the gradients of all shares to those of the first one, in order. The
 * others are empty then.
 */
export async function gather([first, ...others]: readonly [
  Share,
  ...Share[],
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
  { model: { backend }, sum }: Share,
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
