import type { FloatType } from '../../dtype';
import type { OperatorName } from '../../ops';
import { Random } from '../../random';
import { Sequences } from '../../sequences';
import { formatShape, type Shape, sizeOf } from '../../tensor';
import { type Values, valuesOf } from '../values';

/** What an input holds, drawn from a seed so that a case shrinks by its sizes. */
export interface Input {
  readonly shape: Shape;
  /** `statistic`: f32 beside 16-bit operands. */
  readonly role: 'data' | 'statistic' | 'index';
  /** One element, or all of them where they depend on each other. */
  readonly fill: (random: Random, size: number) => ArrayLike<number>;
}

/** Inputs that are another operator's results, such as an LSE. */
export interface Derived {
  readonly operator: OperatorName;
  readonly attributes: unknown;
  /** Its inputs, by the names of the case's. */
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputs: readonly string[];
}

/** One call of one operator. */
export interface OperatorCase {
  readonly operator: OperatorName;
  readonly attributes: unknown;
  readonly inputs: Readonly<Record<string, Input>>;
  /** Inputs that are the same tensor as another. */
  readonly alias?: Readonly<Record<string, string>>;
  readonly derived?: Derived;
  /** Statistics that are two inputs' products over the last axis, by name. */
  readonly products?: Readonly<Record<string, readonly [string, string]>>;
  readonly seed: number;
  /** Equal scores are equal to the bit on every backend. */
  readonly exactTies?: boolean;
}

/** Runs an operator wholly in double; the reference of a comparison. */
export type RunReference = (
  operator: OperatorName,
  inputs: Readonly<Record<string, Values>>,
  attributes: unknown,
) => Promise<Record<string, Values>>;

/** The inputs' values, rounded to `dtype`; aliases are the same object. */
export async function valuesOfCase(
  { inputs, alias = {}, derived, products = {}, seed }: OperatorCase,
  dtype: FloatType,
  reference: RunReference,
): Promise<Record<string, Values>> {
  const random = Random.fromSeed(seed);
  const values: Record<string, Values> = {};
  for (const [name, { shape, role, fill }] of Object.entries(inputs)) {
    const data = fill(random, sizeOf(shape));
    values[name] =
      role === 'index'
        ? { shape, dtype: 'i32', data: Int32Array.from(data) }
        : valuesOf(shape, Float64Array.from(data), dtype, role);
  }
  for (const [name, other] of Object.entries(alias)) {
    const same = values[other];
    if (same) values[name] = same;
  }
  if (derived) {
    const taken = Object.entries(derived.inputs).flatMap(([name, from]) => {
      const value = values[from];
      return value ? [[name, value] as const] : [];
    });
    const results = await reference(
      derived.operator,
      Object.fromEntries(taken),
      derived.attributes,
    );
    for (const name of derived.outputs) {
      const result = results[name];
      if (!result) continue;
      const role = name === 'lse' ? 'statistic' : 'data';
      values[name] = valuesOf(
        result.shape,
        Float64Array.from(result.data),
        dtype,
        role,
      );
    }
  }
  for (const [name, [a, b]] of Object.entries(products)) {
    const [x, y] = [values[a], values[b]];
    if (x && y) values[name] = rowProducts(x, y, dtype);
  }
  return values;
}

function rowProducts(x: Values, y: Values, dtype: FloatType): Values {
  const shape = x.shape.slice(0, -1);
  const sums = new Float64Array(sizeOf(shape));
  const width = x.data.length / Math.max(1, sums.length);
  x.data.forEach((value, i) => {
    const row = Math.floor(i / width);
    sums[row] = (sums[row] ?? 0) + value * (y.data[i] ?? 0);
  });
  return valuesOf(shape, sums, dtype, 'statistic');
}

/** Standard normal values: well scaled, and never zero. */
export const normal: Input['fill'] = (random, size) =>
  new Float64Array(size).map(() => random.normal());

export const data = (...shape: number[]): Input => ({
  shape,
  role: 'data',
  fill: normal,
});

export const statistic = (...shape: number[]): Input => ({
  shape,
  role: 'statistic',
  fill: normal,
});

/** Shapes and attributes in one line, for reports. */
export function describeCase(
  { inputs, alias = {}, attributes, seed }: OperatorCase,
  dtype: FloatType,
): string {
  const shapes = Object.entries(inputs).map(
    ([name, { shape }]) => `${name} ${formatShape(shape)}`,
  );
  const same = Object.entries(alias).map(([name, of]) => `${name} is ${of}`);
  return [
    ...shapes,
    ...same,
    dtype,
    formatAttributes(attributes),
    `data ${seed}`,
  ]
    .filter((part) => part !== '')
    .join(', ');
}

function formatAttributes(attributes: unknown): string {
  return Object.entries(attributes as Record<string, unknown>)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) =>
      value instanceof Sequences
        ? `sequences ${JSON.stringify(value.list.map((s) => Object.values(s)))}`
        : `${name} ${String(value)}`,
    )
    .join(', ');
}
