import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  type DType,
  f32ToBf16,
  f32ToF16,
  type HostArray,
  type OperatorName,
  operators,
  Scope,
  Tape,
  type Tensor,
} from '@asa/core';
import fc from 'fast-check';
import { expect } from 'vitest';

/** Poisoned, so that an element that a kernel forgets is NaN. */
const cpu: Backend = await openCpu({ poison: true });

/** Around the 4 x 4 tile, 1 and primes. */
export const extent = fc.constantFrom(1, 2, 3, 4, 5, 7, 8, 9, 13);
export const seed = fc.integer({ min: 1, max: 2 ** 31 - 1 });

/** Reproducible reals of either sign with magnitudes from 0.25 to 1.25. */
export function reals(count: number, start: number): Float64Array {
  const next = integers(start);
  return Float64Array.from({ length: count }, () => {
    const value = next() / 2 ** 32;
    return (next() & 1 ? 1 : -1) * (0.25 + value);
  });
}

/** Mulberry32. */
export function integers(start: number): () => number {
  let state = start >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

export interface Value {
  readonly shape: readonly number[];
  readonly data: Float64Array | Int32Array;
}
export type Values = Readonly<Record<string, Value | undefined>>;

export function real(shape: readonly number[], start: number): Value {
  return { shape, data: reals(count(shape), start) };
}

export function ints(values: readonly number[]): Value {
  return { shape: [values.length], data: Int32Array.from(values) };
}

export function count(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** Reals as a tensor of some type, rounded to it. */
export function encode(data: ArrayLike<number>, dtype: DType): HostArray {
  if (dtype === 'f64') return Float64Array.from(data);
  if (dtype === 'i32') return Int32Array.from(data);
  const singles = Float32Array.from(data);
  if (dtype === 'f32') return singles;
  return dtype === 'f16' ? f32ToF16(singles) : f32ToBf16(singles);
}

/** What an operator reads that keeps f32 beside 16-bit operands. */
const statistics = new Set([
  'frequencies',
  'lse',
  'dLoss',
  'state',
  'total',
  'squaredNorm',
]);

function upload(scope: Scope, values: Values, dtype: DType) {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => {
      if (!value) return [name, undefined];
      const own = statistics.has(name) && dtype !== 'f64' ? 'f32' : dtype;
      const type = value.data instanceof Int32Array ? 'i32' : own;
      const data = encode(value.data, type);
      return [name, scope.tensor(data, value.shape, type)];
    }),
  );
}

function run(
  scope: Scope,
  name: OperatorName,
  inputs: Readonly<Record<string, Tensor | undefined>>,
  attributes: object,
): Record<string, Tensor> {
  return scope.run(
    operators[name] as never,
    inputs as never,
    attributes as never,
  );
}

/** Runs one operator: its outputs, and the inputs that it writes. */
export async function call(
  name: OperatorName,
  inputs: Values,
  attributes: object = {},
  dtype: DType = 'f64',
): Promise<Record<string, HostArray>> {
  const scope = new Scope(cpu);
  try {
    const tensors = upload(scope, inputs, dtype);
    const outputs = run(scope, name, tensors, attributes);
    const operator: { mutates?: readonly string[] } = operators[name];
    for (const target of operator.mutates ?? []) {
      const tensor = tensors[target];
      if (tensor) outputs[target] = tensor;
    }
    const result: Record<string, HostArray> = {};
    for (const [key, tensor] of Object.entries(outputs)) {
      result[key] = await scope.read(tensor);
    }
    return result;
  } finally {
    scope.free();
  }
}

/** |got - want| / |want|, in the root mean square. */
function relativeError(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
): number {
  expect(got.length).toBe(want.length);
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / size);
}

export function expectClose(
  got: ArrayLike<number> | undefined,
  want: ArrayLike<number>,
  allowed = 1e-12,
): void {
  expect(relativeError(got ?? [], want)).toBeLessThan(allowed);
}

/** The directions whose central difference is taken, at most. */
const PROBES = 24;
const RELATIVE = 1e-6;
/** What the central difference itself loses: 1e-16 of the objective / 1e-5. */
const ABSOLUTE = 1e-9;

/**
 * The gradient of `sum(seed * output)` through the tape, against central
 * differences in double, relative error below 1e-6 for each input.
 */
export async function checkGradient(
  name: OperatorName,
  inputs: Values,
  attributes: object,
  output: string,
  wanted: readonly string[],
): Promise<void> {
  const outputs = await call(name, inputs, attributes);
  const weights = reals(outputs[output]!.length, 99);
  const objective = async (values: Values) => {
    const y = Float64Array.from(
      (await call(name, values, attributes))[output]!,
    );
    return y.reduce((sum, value, i) => sum + value * weights[i]!, 0);
  };

  const tape = new Tape();
  const scope = new Scope(cpu, tape);
  const tensors = upload(scope, inputs, 'f64');
  const sources = wanted.map((input) => tensors[input] as Tensor);
  tape.watch(...sources);
  const y = run(scope, name, tensors, attributes)[output]!;
  const start = scope.tensor(weights, y.shape, 'f64');
  const gradients = tape.backward(y, start, sources);

  for (const input of wanted) {
    const tensor = gradients.get(tensors[input] as Tensor);
    const gradient = tensor && (await scope.read(tensor));
    const { shape, data } = inputs[input]!;
    const step = Math.max(1, Math.floor(data.length / PROBES));
    const got: number[] = [];
    const want: number[] = [];
    for (let i = 0; i < data.length; i += step) {
      const h = 1e-5;
      const at = (delta: number) => {
        const moved = Float64Array.from(data);
        moved[i] = moved[i]! + delta;
        return objective({ ...inputs, [input]: { shape, data: moved } });
      };
      got.push(gradient![i]!);
      want.push(((await at(h)) - (await at(-h))) / (2 * h));
    }
    const difference = got.map((value, i) => value - want[i]!);
    const allowed = RELATIVE * Math.hypot(...want) + ABSOLUTE;
    expect(Math.hypot(...difference), input).toBeLessThan(allowed);
    tensor?.free();
  }
  scope.free();
}
