import type { DType, FloatType } from '../dtype';
import { widened } from '../io/model-folder';
import { narrowed } from '../model/parameters';
import { statisticType } from '../ops/operator';
import type { Scope } from '../scope';
import type { Shape, Tensor } from '../tensor';

/**
 * A tensor's values on the host, in double whatever its type, already rounded
 * to that type: both backends of a comparison are given the same numbers.
 */
export interface Values {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly data: Float64Array | Int32Array;
}

/** Half the distance from 1 to the next number: the error of one rounding. */
export const roundoff: Record<FloatType, number> = {
  f64: 2 ** -53,
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -8,
};

/** Real values as a type holds them. */
export function roundedTo(data: Float64Array, dtype: FloatType): Float64Array {
  return Float64Array.from(widened({ dtype, data: narrowed(data, dtype) }));
}

/** The same values with the types that an operator wholly in double takes. */
export function inDouble(values: Values): Values {
  return values.dtype === 'i32' ? values : { ...values, dtype: 'f64' };
}

/** Rounds to a type, or to the type that statistics have beside it. */
export function valuesOf(
  shape: Shape,
  data: Float64Array,
  dtype: FloatType,
  role: 'data' | 'statistic' = 'data',
): Values {
  const type = role === 'data' ? dtype : statisticType(dtype);
  return { shape, dtype: type, data: roundedTo(data, type) };
}

export function upload(scope: Scope, { shape, dtype, data }: Values): Tensor {
  const host =
    data instanceof Int32Array || dtype === 'i32'
      ? Int32Array.from(data)
      : narrowed(data, dtype);
  return scope.tensor(host, shape, dtype);
}

export async function download(tensor: Tensor): Promise<Values> {
  const { shape, dtype } = tensor;
  const data = await tensor.backend.read(tensor.storage);
  return {
    shape,
    dtype,
    data:
      data instanceof Int32Array
        ? data
        : Float64Array.from(widened({ dtype, data })),
  };
}

/** Root mean square; 0 of nothing. Infinities are left out. */
export function rootMeanSquare(data: ArrayLike<number>): number {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < data.length; i++) {
    const value = data[i] ?? 0;
    if (!Number.isFinite(value)) continue;
    sum += value * value;
    count += 1;
  }
  return count === 0 ? 0 : Math.sqrt(sum / count);
}
