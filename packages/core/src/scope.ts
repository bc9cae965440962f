import type { Tape } from './autograd';
import type { Backend } from './backend';
import type { DType, HostArray } from './dtype';
import {
  ArgumentError,
  ShapeError,
  TensorStateError,
  UnsupportedError,
} from './errors';
import type { OperatorName } from './ops';
import type { Kernel, ManyKernel, Operator } from './ops/operator';
import {
  type Allocation,
  formatShape,
  type Shape,
  sizeOf,
  Tensor,
  type TensorSpec,
} from './tensor';

/**
 * Runs operators on one backend and owns what they allocate: everything made
 * in a scope is freed with it, except what was handed to `keep`.
 */
export class Scope {
  private readonly owned = new Map<Allocation, Tensor>();

  constructor(
    readonly backend: Backend,
    /** Records the operators, so that gradients can be taken. */
    readonly tape?: Tape,
  ) {}

  /** An uninitialised tensor. */
  empty(shape: Shape, dtype: DType): Tensor {
    const storage = this.backend.allocate(sizeOf(shape), dtype);
    return this.own(
      new Tensor(
        { backend: this.backend, storage, freed: false },
        shape,
        dtype,
      ),
    );
  }

  /**
   * A tensor with data from the host.
   * @throws ShapeError when the lengths differ.
   */
  tensor(data: HostArray, shape: Shape, dtype: DType): Tensor {
    if (data.length !== sizeOf(shape)) {
      throw new ShapeError(
        `tensor: ${formatShape(shape)} has ${sizeOf(shape)} elements, got ${data.length}`,
      );
    }
    const tensor = this.empty(shape, dtype);
    this.backend.write(tensor.storage, data);
    return tensor;
  }

  /** Indices, i32 `[n]`. */
  indices(values: ArrayLike<number>): Tensor {
    return this.tensor(Int32Array.from(values), [values.length], 'i32');
  }

  /** Checks, allocates the outputs, and enqueues one operator. */
  run<Inputs extends object, Outputs extends object, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    inputs: Inputs,
    attributes: Attributes,
  ): Outputs {
    const { kernel, outputs } = this.prepare(operator, inputs, attributes);
    kernel(inputs, outputs, attributes);
    this.tape?.record(operator, inputs, outputs, attributes);
    return outputs;
  }

  /** The same for many calls, as `prepareMany` takes them. */
  runMany<Inputs extends object, Outputs extends object, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    calls: readonly { inputs: Inputs; attributes: Attributes }[],
  ): Outputs[] {
    return this.prepareMany(operator, calls)();
  }

  /**
   * Checks many calls now and enqueues them when the result is called: for work
   * that has to wait for an answer. No call reads what another one writes;
   * several may add to one tensor, or write different rows of one. A backend may
   * put them together.
   */
  prepareMany<Inputs extends object, Outputs extends object, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    calls: readonly { inputs: Inputs; attributes: Attributes }[],
  ): () => Outputs[] {
    const prepared = calls.map(({ inputs, attributes }) => ({
      ...this.prepare(operator, inputs, attributes),
      inputs,
      attributes,
    }));
    const name = operator.name as OperatorName;
    const many = this.backend.manyKernels?.[name] as
      | ManyKernel<Inputs, Outputs, Attributes>
      | undefined;
    return () => {
      many?.(prepared);
      return prepared.map(({ kernel, inputs, outputs, attributes }) => {
        if (!many) kernel(inputs, outputs, attributes);
        this.tape?.record(operator, inputs, outputs, attributes);
        return outputs;
      });
    };
  }

  /** The host's copy of a tensor; waits for the device. */
  async read(tensor: Tensor): Promise<HostArray> {
    return tensor.backend.read(tensor.storage);
  }

  /** A tensor's elements in memory of their own. */
  copyOf({ shape, dtype, storage, size }: Tensor): Tensor {
    const copy = this.empty(shape, dtype);
    this.backend.copy(storage, 0, copy.storage, 0, size);
    return copy;
  }

  /** Takes tensors out of the scope: their new owner frees them. */
  keep<T extends Tensor>(tensor: T): T {
    this.owned.delete(tensor.allocation);
    return tensor;
  }

  /** A scope within this one; what `body` returns moves out into this one. */
  within(body: (scope: Scope) => Tensor): Tensor {
    // A tape may need every intermediate again: nothing is freed early.
    if (this.tape) return body(this);
    const inner = new Scope(this.backend);
    try {
      const result = body(inner);
      return inner.gives(result) ? this.own(result) : result;
    } finally {
      inner.free();
    }
  }

  /** Frees everything the scope still owns. */
  free(): void {
    for (const tensor of this.owned.values()) tensor.free();
    this.owned.clear();
  }

  /** Checks a call and allocates its outputs. */
  private prepare<Inputs extends object, Outputs extends object, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    inputs: Inputs,
    attributes: Attributes,
  ): { kernel: Kernel<Inputs, Outputs, Attributes>; outputs: Outputs } {
    const operands = inputs as Readonly<Record<string, Tensor | undefined>>;
    this.check(operator.name, operands, operator.mutates);
    const specs = operator.infer(inputs as never, attributes);
    const kernel = this.kernel(operator, operands, attributes);
    const outputs: Record<string, Tensor> = {};
    for (const name in specs as Readonly<Record<string, TensorSpec>>) {
      const spec: TensorSpec | undefined = specs[name as keyof typeof specs];
      if (spec) outputs[name] = this.empty(spec.shape, spec.dtype);
    }
    return { kernel, outputs: outputs as Outputs };
  }

  private gives(tensor: Tensor): boolean {
    return this.owned.delete(tensor.allocation);
  }

  private own(tensor: Tensor): Tensor {
    this.owned.set(tensor.allocation, tensor);
    return tensor;
  }

  private check(
    operator: string,
    operands: Readonly<Record<string, Tensor | undefined>>,
    mutates: readonly string[] = [],
  ): void {
    for (const name in operands) {
      const tensor = operands[name];
      if (tensor === undefined) continue;
      if (tensor.backend !== this.backend) {
        throw new TensorStateError(
          `${operator}: ${name} is on backend ${tensor.backend.name}, not on this ${this.backend.name}`,
        );
      }
      if (tensor.allocation.freed) {
        throw new TensorStateError(`${operator}: ${name} was freed already`);
      }
    }
    for (const target of mutates) {
      for (const [name, tensor] of Object.entries(operands)) {
        if (
          name !== target &&
          tensor !== undefined &&
          tensor.allocation === operands[target]?.allocation
        ) {
          throw new ArgumentError(
            `${operator}: ${target} is written in place and must not share memory with ${name}`,
          );
        }
      }
    }
  }

  private kernel<Inputs, Outputs, Attributes>(
    operator: Operator<Inputs, Outputs, Attributes>,
    operands: Readonly<Record<string, Tensor | undefined>>,
    attributes: Attributes,
  ): Kernel<Inputs, Outputs, Attributes> {
    const name = operator.name as OperatorName;
    const kernel = this.backend.kernels[name];
    const can = this.backend.supports(name, operands, attributes);
    if (kernel === undefined || can !== true) {
      throw new UnsupportedError(
        name,
        this.backend.name,
        can === true ? 'it has no kernel for it' : can,
      );
    }
    return kernel as unknown as Kernel<Inputs, Outputs, Attributes>;
  }
}
