import type { Backend } from '../backend';
import { ArgumentError } from '../errors';
import { Model } from '../model/model';
import { Scope } from '../scope';
import { byTurns } from '../steps';
import type { Tensor } from '../tensor';
import { transfer } from '../transfer';
import {
  accumulate,
  type Example,
  freeAll,
  type Gradients,
  Pass,
} from './loss';

/** A model's part of a step. Whoever has it frees its tensors. */
interface Share {
  readonly model: Model;
  /** The sum of the gradients of its passes. */
  readonly sum: Gradients;
}

/**
 * A model and its replicas on further backends, which share out the passes of a
 * step. The replicas are only as good as the last `copyWeights`.
 */
export class Replicas {
  /** The model itself, then the replicas. */
  readonly models: readonly [Model, ...Model[]];

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
    this.models = [model, ...replicas];
  }

  /** Gives the replicas the model's weights. */
  async copyWeights(): Promise<void> {
    const { models } = this;
    for (const [index, replica] of models.entries()) {
      if (index === 0) continue;
      // Those that have them pass them on: the ways from several cards are as
      // wide as those from one are together.
      const source = models[index - 2 ** Math.floor(Math.log2(index))];
      if (source) await copyBetween(source, replica);
    }
  }

  /** What each model has of a step, with empty sums. */
  shares(): [Share, ...Share[]] {
    const share = (model: Model): Share => ({ model, sum: new Map() });
    const [model, ...replicas] = this.models;
    return [share(model), ...replicas.map(share)];
  }

  /** Frees the replicas; the model stays its owner's. */
  free(): void {
    for (const replica of this.models.slice(1)) replica.free();
  }
}

/**
 * Enqueues a pass for each of the first shares. A device takes a limited number
 * of commands, and the host waits where one has them: so all forward halves come
 * first, of which the host is done sooner, and of the others an operator of each
 * pass by turns. No backend runs out of work while another one is given some.
 * @param weight what each counted target adds to the gradient.
 * @param losses gets that of each pass.
 */
export function enqueueRound(
  shares: readonly Share[],
  passes: readonly (readonly Example[])[],
  weight: number,
  losses: Tensor[],
): void {
  const begun: Pass[] = [];
  try {
    for (const [index, { model }] of shares.entries()) {
      const examples = passes[index];
      if (!examples) break;
      const pass = new Pass(model, examples);
      begun.push(pass);
      losses.push(pass.loss);
    }
    byTurns(
      begun.map((pass) => pass.backward(weight)),
      (index, gradients) => {
        begun[index]?.free();
        const share = shares[index];
        if (share) accumulate(share.sum, gradients);
      },
    );
  } finally {
    for (const pass of begun) pass.free();
  }
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
    await transfer(model.backend, to, additions(to, first.sum, sum));
    freeAll(sum);
    sum.clear();
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
  backend: Backend,
  sum: Gradients,
  gradients: Gradients,
): Generator<readonly [source: Tensor, target: Tensor]> {
  for (const [name, gradient] of gradients) {
    const scope = new Scope(backend);
    try {
      const copy = scope.empty(gradient.shape, gradient.dtype);
      yield [gradient, copy];
      accumulate(sum, new Map([[name, scope.keep(copy)]]));
    } finally {
      scope.free();
    }
  }
}
