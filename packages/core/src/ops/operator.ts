import type { FloatType } from '../dtype';
import { ArgumentError, DTypeError, ShapeError } from '../errors';
import type { Scope } from '../scope';
import type { Sequences } from '../sequences';
import {
  formatShape,
  type Shape,
  type Tensor,
  type TensorSpec,
} from '../tensor';

/** The same names with shapes and element types only. */
export type SpecsOf<T> = { readonly [Name in keyof T]: TensorSpec };

/** What a gradient rule is given: the call, and the gradients of its outputs. */
export interface GradientCall<Inputs, Outputs, Attributes> {
  readonly inputs: Inputs;
  readonly outputs: Outputs;
  readonly attributes: Attributes;
  readonly gradients: { readonly [Name in keyof Outputs]?: Tensor | undefined };
  /** Whether anyone wants the gradient of this input. */
  wants(name: keyof Inputs): boolean;
  /**
   * What other uses of this input have given so far, where it is wanted. A rule
   * that asks for it must add it to the gradient that it gives: operators that
   * can add on the way spare the sum's own pass over memory.
   */
  accumulated(name: keyof Inputs): Tensor | undefined;
  /**
   * Says of the gradient that the rule gives an input what its product with the
   * input is, summed over the last axis: of the input's shape without that axis.
   */
  tellProducts(name: keyof Inputs, products: Tensor): void;
  /**
   * The same of an output and its gradient, where a rule has told it and no other
   * use has added to that gradient.
   */
  products(name: keyof Outputs): Tensor | undefined;
}

/** The gradients of the inputs, by name; none for constants and indices. */
export type InputGradients<Inputs> = {
  readonly [Name in keyof Inputs]?: Tensor | undefined;
};

/**
 * The contract of one operator. `infer` refuses bad operands with a typed
 * error and gives the outputs' shapes; backends rely on it. `gradient` runs
 * other operators in the scope. `mutates` names inputs written in place.
 */
export interface Operator<Inputs, Outputs, Attributes> {
  readonly name: string;
  readonly mutates?: readonly (keyof Inputs & string)[];
  infer(inputs: SpecsOf<Inputs>, attributes: Attributes): SpecsOf<Outputs>;
  gradient?(
    scope: Scope,
    call: GradientCall<Inputs, Outputs, Attributes>,
  ): InputGradients<Inputs>;
}

/** Runs one operator; the outputs are allocated, the shapes are right. */
export type Kernel<Inputs, Outputs, Attributes> = (
  inputs: Inputs,
  outputs: Outputs,
  attributes: Attributes,
) => void;

/** Runs many calls of one operator, as if one after another. */
export type ManyKernel<Inputs, Outputs, Attributes> = (
  calls: readonly {
    readonly inputs: Inputs;
    readonly outputs: Outputs;
    readonly attributes: Attributes;
  }[],
) => void;

export type ManyKernelOf<T> =
  T extends Operator<infer Inputs, infer Outputs, infer Attributes>
    ? ManyKernel<Inputs, Outputs, Attributes>
    : never;

/** The kernel type that belongs to an operator. */
export type KernelOf<T> =
  T extends Operator<infer Inputs, infer Outputs, infer Attributes>
    ? Kernel<Inputs, Outputs, Attributes>
    : never;

/** The rules that operators share, each with the operator's name in front. */
export class Rules {
  constructor(readonly operator: string) {}

  /** `-1` in `want` takes any extent. */
  shape(name: string, spec: TensorSpec, want: Shape): void {
    const fits =
      spec.shape.length === want.length &&
      want.every((extent, axis) => extent < 0 || extent === spec.shape[axis]);
    if (!fits) {
      throw new ShapeError(
        `${this.operator}: ${name} must be ${formatShape(want).replaceAll('-1', '*')}, got ${formatShape(spec.shape)}`,
      );
    }
  }

  /** The extents of a tensor of exactly `rank` axes. */
  extents<Rank extends 1 | 2 | 3 | 4>(
    name: string,
    spec: TensorSpec,
    rank: Rank,
  ): Extents[Rank] {
    if (spec.shape.length !== rank) {
      throw new ShapeError(
        `${this.operator}: ${name} must have ${rank} axes, got ${formatShape(spec.shape)}`,
      );
    }
    return spec.shape as unknown as Extents[Rank];
  }

  /** All operands given have the same real type; returns it. */
  floats(specs: Readonly<Record<string, TensorSpec | undefined>>): FloatType {
    let first: [string, FloatType] | undefined;
    for (const [name, spec] of Object.entries(specs)) {
      if (spec === undefined) continue;
      if (spec.dtype === 'i32') {
        throw new DTypeError(
          `${this.operator}: ${name} must be a real type, got i32`,
        );
      }
      first ??= [name, spec.dtype];
      if (spec.dtype !== first[1]) {
        throw new DTypeError(
          `${this.operator}: ${name} must be ${first[1]} as ${first[0]} is, got ${spec.dtype}`,
        );
      }
    }
    if (first === undefined) {
      throw new DTypeError(`internal: ${this.operator} has no real operand`);
    }
    return first[1];
  }

  /** A statistic (LSE, loss, importance) or frequencies: f32, or f64 throughout. */
  statistic(name: string, spec: TensorSpec, operands: FloatType): void {
    const want = statisticType(operands);
    if (spec.dtype !== want) {
      throw new DTypeError(
        `${this.operator}: ${name} must be ${want}, got ${spec.dtype}`,
      );
    }
  }

  indices(name: string, spec: TensorSpec): void {
    if (spec.dtype !== 'i32') {
      throw new DTypeError(
        `${this.operator}: ${name} must be i32, got ${spec.dtype}`,
      );
    }
  }

  /** An operand that may be missing, but not here. */
  present(
    name: string,
    spec: TensorSpec | undefined,
    because: string,
  ): TensorSpec {
    if (spec !== undefined) return spec;
    throw new ArgumentError(
      `${this.operator}: ${name} must be given with ${because}`,
    );
  }

  positive(name: string, value: number): void {
    this.integer(name, value, 1);
  }

  integer(name: string, value: number, least: number): void {
    if (!Number.isSafeInteger(value) || value < least) {
      throw new ArgumentError(
        `${this.operator}: ${name} must be an integer of at least ${least}, got ${value}`,
      );
    }
  }

  finite(name: string, value: number): void {
    if (!Number.isFinite(value)) {
      throw new ArgumentError(
        `${this.operator}: ${name} must be finite, got ${value}`,
      );
    }
  }

  positiveReal(name: string, value: number): void {
    if (!(Number.isFinite(value) && value > 0)) {
      throw new ArgumentError(
        `${this.operator}: ${name} must be positive and finite, got ${value}`,
      );
    }
  }

  divides(part: string, whole: string, partValue: number, value: number): void {
    if (partValue < 1 || value % partValue !== 0) {
      throw new ShapeError(
        `${this.operator}: ${part} must divide ${whole}, got ${partValue} and ${value}`,
      );
    }
  }

  /** The axis is long enough for the sequences. */
  rows(name: string, have: number, need: number): void {
    if (have < need) {
      throw new ShapeError(
        `${this.operator}: ${name} must have at least ${need} rows for these sequences, got ${have}`,
      );
    }
  }

  /** Gradients exist only where the queries are all the keys (`Tq = Tk`). */
  selfAttention(sequences: Sequences): void {
    if (!sequences.isSelfAttention) {
      throw new ArgumentError(
        `${this.operator}: the gradient needs Tq = Tk in every sequence`,
      );
    }
  }
}

interface Extents {
  1: readonly [number];
  2: readonly [number, number];
  3: readonly [number, number, number];
  4: readonly [number, number, number, number];
}

/** Scores, LSE, losses and norms are f32, and f64 where everything is. */
export function statisticType(operands: FloatType): 'f32' | 'f64' {
  return operands === 'f64' ? 'f64' : 'f32';
}
