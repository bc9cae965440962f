import { AsaError } from '../errors';
import type { Shape, Tensor } from '../tensor';

/** One learned tensor of a layer. */
export interface ParameterSpec {
  readonly name: string;
  readonly shape: Shape;
  /** How training starts it: `normal` with this deviation, or a constant. */
  readonly init: { readonly normal: number } | { readonly constant: number };
}

/** The tensors of one part of a model, by name within that part. */
export type Weights = (name: string) => Tensor;

/** Standard deviation of new matrices. */
const deviation = 0.02;

/** A matrix `[out, in]`, or one a head `[H, out, in]`. */
export function matrix(name: string, ...shape: number[]): ParameterSpec {
  return { name, shape, init: { normal: deviation } };
}

export function constant(
  name: string,
  shape: Shape,
  value: number,
): ParameterSpec {
  return { name, shape, init: { constant: value } };
}

/** Puts a part's name before its parameters' names. */
export function within(
  part: string,
  parameters: readonly ParameterSpec[],
): ParameterSpec[] {
  return parameters.map((p) => ({ ...p, name: `${part}.${p.name}` }));
}

/** The view of `weights` on the part called `part`. */
export function partOf(weights: Weights, part: string): Weights {
  return (name) => weights(`${part}.${name}`);
}

/** Looks tensors up by their whole name. */
export function weightsFrom(tensors: ReadonlyMap<string, Tensor>): Weights {
  return (name) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new AsaError(`internal: no parameter ${name}`);
    return tensor;
  };
}
