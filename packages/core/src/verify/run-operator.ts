import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { type OperatorName, operators } from '../ops';
import type { Operator } from '../ops/operator';
import { Scope } from '../scope';
import { Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import type { RunReference } from './arbitraries/case';
import { download, inDouble, upload, type Values } from './values';

export type ValuesByName = Readonly<Record<string, Values>>;
type TensorsByName = Readonly<Record<string, Tensor | undefined>>;

/** An operator of any kind, as code that treats all alike sees it. */
export type AnyOperator = Operator<TensorsByName, TensorsByName, unknown>;

export function anyOperator(name: OperatorName): AnyOperator {
  return operators[name] as unknown as AnyOperator;
}

/**
 * Uploads the inputs, runs one operator and reads all it wrote: outputs, and
 * inputs that it changes in place. Inputs that are one object are one tensor.
 * @throws UnsupportedError
 */
export async function runOperator(
  backend: Backend,
  name: OperatorName,
  inputs: ValuesByName,
  attributes: unknown,
): Promise<Record<string, Values>> {
  const scope = new Scope(backend);
  try {
    const tensors = uploadAll(scope, inputs);
    const operator = anyOperator(name);
    const outputs = scope.run(operator, tensors, attributes);
    const written: Record<string, Values> = {};
    for (const [output, tensor] of Object.entries(outputs)) {
      if (tensor) written[output] = await download(tensor);
    }
    for (const input of operator.mutates ?? []) {
      const tensor = tensors[input];
      if (tensor) written[input] = await download(tensor);
    }
    return written;
  } finally {
    scope.free();
    sequencesOf(attributes)?.free();
  }
}

/** Uploads values by name; the same values twice become one tensor. */
export function uploadAll(
  scope: Scope,
  inputs: ValuesByName,
): Record<string, Tensor> {
  const made = new Map<Values, Tensor>();
  return Object.fromEntries(
    Object.entries(inputs).map(([name, values]) => {
      const tensor = made.get(values) ?? upload(scope, values);
      made.set(values, tensor);
      return [name, tensor];
    }),
  );
}

/** Runs operators wholly in double on a backend that can. */
export function referenceOn(backend: Backend): RunReference {
  return (operator, inputs, attributes) =>
    runOperator(backend, operator, doubled(inputs), inDoubles(attributes));
}

/** `true`, or why a backend cannot run this call. */
export function canRun(
  backend: Backend,
  name: OperatorName,
  inputs: ValuesByName,
  attributes: unknown,
): true | string {
  if (!backend.kernels[name]) return 'it has no kernel for it';
  return backend.supports(name, inputs, attributes);
}

export function sequencesOf(attributes: unknown): Sequences | undefined {
  const { sequences } = attributes as { readonly sequences?: unknown };
  return sequences instanceof Sequences ? sequences : undefined;
}

/** The inputs with the types that an operator wholly in double takes. */
export function doubled(inputs: ValuesByName): ValuesByName {
  const made = new Map<Values, Values>();
  return Object.fromEntries(
    Object.entries(inputs).map(([name, values]) => {
      const double = made.get(values) ?? inDouble(values);
      made.set(values, double);
      return [name, double];
    }),
  );
}

/** `cast` names a type; in double there is only one. */
function inDoubles(attributes: unknown): unknown {
  const { dtype } = attributes as { readonly dtype?: FloatType };
  return dtype === undefined
    ? attributes
    : { ...(attributes as object), dtype: 'f64' };
}
