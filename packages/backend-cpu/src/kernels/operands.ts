/**
 * How a kernel gets at its operands. A kernel sees f32, f64 and i32 tensors
 * only: the backend widens 16-bit operands before it and rounds its results
 * after it. Outputs are not cleared: a kernel writes every element.
 */
import {
  bf16ToF32,
  DTypeError,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  type HostArray,
  type KernelTable,
  type Tensor,
} from '@asa/core';
import { memoryOf } from '../memory';

/** Elements of a real tensor, row-major. Storing into f32 rounds once. */
export type Floats = Float32Array | Float64Array;

/** The values of an f32 or f64 tensor, to read or to write. */
export function floats(tensor: Tensor): Floats {
  const data = elements(tensor);
  if (data instanceof Float32Array || data instanceof Float64Array) return data;
  throw new DTypeError(`internal: a kernel takes f32 or f64, ${tensor.dtype}`);
}

/** The values of an i32 tensor. */
export function indices(tensor: Tensor): Int32Array {
  const data = elements(tensor);
  if (data instanceof Int32Array) return data;
  throw new DTypeError(`internal: a kernel takes i32, got ${tensor.dtype}`);
}

/** The raw elements of any tensor; `f16` and `bf16` as bits. */
export function elements(tensor: Tensor): HostArray {
  return memoryOf(tensor.storage).data;
}

export function isHalf(tensor: Tensor | undefined): boolean {
  return tensor?.dtype === 'f16' || tensor?.dtype === 'bf16';
}

/**
 * Values of a real tensor of any type, to read: the 16-bit types as a widened
 * copy, the others in place.
 */
export function readable(tensor: Tensor, start = 0, end = tensor.size): Floats {
  if (!isHalf(tensor)) return floats(tensor).subarray(start, end);
  const bits = (elements(tensor) as Uint16Array).subarray(start, end);
  return tensor.dtype === 'f16' ? f16ToF32(bits) : bf16ToF32(bits);
}

/** Memory to write a real tensor's values to before `store` rounds them. */
export function writable(tensor: Tensor): Floats {
  return isHalf(tensor) ? new Float32Array(tensor.size) : floats(tensor);
}

/** Puts what was written to `writable` where it belongs. */
export function store(values: Floats, tensor: Tensor): void {
  if (!(values instanceof Float32Array && isHalf(tensor))) return;
  const bits = elements(tensor) as Uint16Array;
  bits.set(tensor.dtype === 'f16' ? f32ToF16(values) : f32ToBf16(values));
}

/** Some kernels, each of its operator's type. */
export type Kernels<Name extends keyof KernelTable> = Required<
  Pick<KernelTable, Name>
>;
