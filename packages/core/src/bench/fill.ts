import type { FloatType, HostArray } from '../dtype';
import { narrowed } from '../model/parameters';
import { Random } from '../random';
import type { Scope } from '../scope';
import { type Shape, sizeOf, type Tensor } from '../tensor';
import { roundedTo, type Values } from '../verify/values';

/** A tensor with numbers in it: drawn on a device, or only its shape. */
export type Draw = (
  scope: Scope,
  shape: Shape,
  dtype: FloatType,
  seed: number,
  deviation?: number,
) => Tensor;

/** Where nothing is computed, nothing needs to be drawn. */
export const emptyDraw: Draw = (scope, shape, dtype) =>
  scope.empty(shape, dtype);

/**
 * Random numbers repeat after so many elements: making them must not take
 * longer than the device does. No row begins as the one before, and whole
 * periods lie on words in 16 bits too.
 */
const PERIOD = 65_534;

/** Elements handed over at a time. */
const PIECE = 32 * PERIOD;

/** Normal values with the given standard deviation, 1 when left out. */
export const normalDraw: Draw = (scope, shape, dtype, seed, deviation = 1) => {
  const tensor = scope.empty(shape, dtype);
  const size = sizeOf(shape);
  const period = narrowed(normals(seed, size, deviation), dtype);
  const piece = repeated(period, Math.min(size, PIECE));
  for (let i = 0; i < size; i += PIECE) {
    const rest = piece.subarray(0, size - i);
    tensor.backend.write(tensor.storage, rest, i);
  }
  return tensor;
};

/** The values that `normalDraw` gives, as the type holds them, in double. */
export function normalValues(
  shape: Shape,
  dtype: FloatType,
  seed: number,
  deviation = 1,
): Values {
  const size = sizeOf(shape);
  const period = roundedTo(normals(seed, size, deviation), dtype);
  return { shape, dtype, data: repeated(period, size) };
}

/**
 * `normalDraw` in f64, of the values that another type holds: both sides of a
 * comparison get the same numbers.
 */
export const doubleDraw =
  (rounded: FloatType): Draw =>
  (scope, shape, _, seed, deviation) => {
    const { data } = normalValues(shape, rounded, seed, deviation);
    return scope.tensor(data, shape, 'f64');
  };

/** Tokens of a vocabulary. */
export function randomTokens(
  count: number,
  vocabularySize: number,
  seed: number,
): Int32Array {
  const random = Random.fromSeed(seed);
  return Int32Array.from({ length: count }, () => random.below(vocabularySize));
}

function normals(seed: number, size: number, deviation: number): Float64Array {
  const random = Random.fromSeed(seed);
  return Float64Array.from(
    { length: Math.min(size, PERIOD) },
    () => deviation * random.normal(),
  );
}

function repeated<T extends HostArray>(period: T, size: number): T {
  const all = new (period.constructor as new (size: number) => T)(size);
  for (let i = 0; i < size; i += PERIOD) {
    all.set(period.subarray(0, size - i), i);
  }
  return all;
}
