import { ArgumentError } from './errors';
import { add } from './ops/add';
import type { Operator } from './ops/operator';
import { Scope } from './scope';
import { type Steps, toEnd } from './steps';
import { type Allocation, formatShape, type Tensor } from './tensor';

interface Entry {
  readonly operator: Operator<object, object, unknown>;
  readonly inputs: Readonly<Record<string, Tensor | undefined>>;
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly attributes: unknown;
}

/**
 * Records what depends on the watched tensors and plays it backwards. It knows
 * operators, not backends. Gradients belong to allocations, so a `reshape`
 * needs no entry of its own.
 */
export class Tape {
  private readonly entries: Entry[] = [];
  private readonly tracked = new Set<Allocation>();

  /** Asks for gradients with respect to these tensors. */
  watch(...tensors: Tensor[]): void {
    for (const tensor of tensors) this.tracked.add(tensor.allocation);
  }

  /** Called by the scope after each operator. */
  record<Inputs extends object, Outputs extends object, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    inputs: Inputs,
    outputs: Outputs,
    attributes: Attributes,
  ): void {
    const operands = Object.values<Tensor | undefined>(inputs as never);
    if (!operands.some((t) => t && this.tracked.has(t.allocation))) return;
    if (operator.mutates) {
      throw new ArgumentError(
        `${operator.name}: it writes in place and has no gradient; run it in a scope without a tape`,
      );
    }
    this.entries.push({ operator, inputs, outputs, attributes } as never);
    for (const output of Object.values<Tensor>(outputs as never)) {
      if (output.dtype !== 'i32') this.tracked.add(output.allocation);
    }
  }

  /**
   * Gradients of the watched tensors from the gradient of one output.
   * @param seed gradient of `output`, of its shape.
   * @returns a map over `sources`; its tensors belong to the caller.
   * @throws ArgumentError when an operator on the way has no gradient.
   */
  backward(
    output: Tensor,
    seed: Tensor,
    sources: readonly Tensor[],
  ): Map<Tensor, Tensor> {
    return toEnd(this.backwardInSteps(output, seed, sources));
  }

  /**
   * The same with a stop behind each operator, so that other backends can be
   * given work in between. What it has is freed where it is ended early.
   */
  *backwardInSteps(
    output: Tensor,
    seed: Tensor,
    sources: readonly Tensor[],
  ): Steps<Map<Tensor, Tensor>> {
    const gradients = new Gradients(seed, output);
    const result = new Map<Tensor, Tensor>();
    try {
      yield* this.playAllBack(gradients, sources);
      const scope = new Scope(gradients.backend);
      for (const source of sources) {
        const gradient = gradients.take(scope, source);
        if (gradient) result.set(source, gradient);
      }
      return result;
    } catch (error) {
      for (const gradient of result.values()) gradient.free();
      throw error;
    } finally {
      gradients.free();
    }
  }

  private *playAllBack(
    gradients: Gradients,
    sources: readonly Tensor[],
  ): Steps<void> {
    const wanted = new Set(sources.map((tensor) => tensor.allocation));
    for (const entry of this.entries.toReversed()) {
      const produced = Object.fromEntries(
        Object.entries(entry.outputs).map(([name, tensor]) => [
          name,
          gradients.of(tensor),
        ]),
      );
      if (Object.values(produced).every((g) => g === undefined)) continue;
      this.playBack(entry, produced, gradients);
      for (const tensor of Object.values(entry.outputs)) {
        if (!wanted.has(tensor.allocation)) gradients.drop(tensor);
      }
      yield;
    }
  }

  private playBack(
    entry: Entry,
    produced: Readonly<Record<string, Tensor | undefined>>,
    gradients: Gradients,
  ): void {
    const { operator, inputs, outputs, attributes } = entry;
    if (!operator.gradient) {
      throw new ArgumentError(`${operator.name}: it has no gradient`);
    }
    const scope = new Scope(gradients.backend);
    const wants = (name: string) => {
      const input = inputs[name];
      return input !== undefined && this.tracked.has(input.allocation);
    };
    /** What the rule adds to its own gradients. */
    const taken: Tensor[] = [];
    const told = new Map<string, Tensor>();
    try {
      const found = operator.gradient(scope, {
        inputs,
        outputs,
        attributes,
        gradients: produced,
        wants,
        accumulated: (name: string) => {
          const input = inputs[name];
          const known = input && wants(name) && gradients.detach(input);
          if (!known) return undefined;
          taken.push(known);
          return known;
        },
        tellProducts: (name: string, products: Tensor) => {
          told.set(name, products);
        },
        products: (name: string) => {
          const output = outputs[name];
          return output && gradients.products(output);
        },
      } as never) as Readonly<Record<string, Tensor | undefined>>;
      for (const [name, gradient] of Object.entries(found)) {
        const input = inputs[name];
        if (gradient && input && wants(name)) {
          gradients.accumulate(scope, input, gradient, told.get(name));
        }
      }
    } finally {
      for (const gradient of taken) gradients.release(gradient);
      scope.free();
    }
  }
}

/** The gradients known so far, each owned here but the seed. */
class Gradients {
  private readonly known = new Map<Allocation, Tensor>();
  /** Products of tensors with these gradients; owned as those are. */
  private readonly told = new Map<Allocation, Tensor>();
  /** Of how many tensors memory is the gradient: `add` gives one to both sides. */
  private readonly uses = new Map<Allocation, number>();

  constructor(
    private readonly seed: Tensor,
    output: Tensor,
  ) {
    if (seed.size !== output.size || seed.dtype !== output.dtype) {
      throw new ArgumentError(
        `backward: the seed must have the output's shape and type, got ${formatShape(seed.shape)} ${seed.dtype} for ${formatShape(output.shape)} ${output.dtype}`,
      );
    }
    // The caller's use of it.
    this.uses.set(seed.allocation, 1);
    this.set(output, seed);
  }

  get backend() {
    return this.seed.backend;
  }

  of(tensor: Tensor): Tensor | undefined {
    return this.known.get(tensor.allocation)?.reshape(tensor.shape);
  }

  /** Products with the last axis of a tensor of this shape, where they are known. */
  products(tensor: Tensor): Tensor | undefined {
    const products = this.told.get(tensor.allocation);
    const rows = tensor.shape.slice(0, -1);
    return products && formatShape(products.shape) === formatShape(rows)
      ? products
      : undefined;
  }

  /** @param products of the gradient with the tensor: those of a sum are not known. */
  accumulate(
    scope: Scope,
    tensor: Tensor,
    gradient: Tensor,
    products: Tensor | undefined,
  ): void {
    const before = this.of(tensor);
    const flat = gradient.reshape(tensor.shape);
    if (!before) {
      this.set(tensor, scope.keep(flat));
      if (products) this.told.set(tensor.allocation, scope.keep(products));
      return;
    }
    const sum = scope.run(add, { a: before, b: flat }, {}).y;
    this.drop(tensor);
    this.set(tensor, scope.keep(sum));
  }

  /** Forgets a gradient, whose memory stays until it is released. */
  detach(tensor: Tensor): Tensor | undefined {
    const gradient = this.of(tensor);
    this.forget(tensor);
    return gradient;
  }

  /** Hands a gradient over, in memory of its own. */
  take(scope: Scope, tensor: Tensor): Tensor | undefined {
    const gradient = this.of(tensor);
    if (!gradient) return undefined;
    if (this.uses.get(gradient.allocation) === 1) {
      this.forget(tensor);
      this.uses.delete(gradient.allocation);
      return gradient;
    }
    const copy = scope.keep(scope.copyOf(gradient));
    this.drop(tensor);
    return copy;
  }

  drop(tensor: Tensor): void {
    const gradient = this.known.get(tensor.allocation);
    if (!gradient) return;
    this.forget(tensor);
    this.release(gradient);
  }

  release(gradient: Tensor): void {
    const uses = (this.uses.get(gradient.allocation) ?? 0) - 1;
    this.uses.set(gradient.allocation, uses);
    if (uses > 0) return;
    this.uses.delete(gradient.allocation);
    gradient.free();
  }

  free(): void {
    for (const [allocation, gradient] of this.known) {
      if (gradient.allocation !== this.seed.allocation) gradient.free();
      this.known.delete(allocation);
    }
    for (const products of this.told.values()) products.free();
    this.told.clear();
  }

  private forget({ allocation }: Tensor): void {
    this.known.delete(allocation);
    this.told.get(allocation)?.free();
    this.told.delete(allocation);
  }

  private set(tensor: Tensor, gradient: Tensor): void {
    const { allocation } = gradient;
    this.known.set(tensor.allocation, gradient);
    this.uses.set(allocation, (this.uses.get(allocation) ?? 0) + 1);
  }
}
