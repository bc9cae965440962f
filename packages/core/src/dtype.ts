/** Element types of tensors. Indices are `i32`; everything else is a real. */
export type FloatType = 'f64' | 'f32' | 'f16' | 'bf16';
export type DType = FloatType | 'i32';

/** What a tensor's elements look like on the host. `f16` and `bf16` are raw bits. */
export type HostArray = Float64Array | Float32Array | Uint16Array | Int32Array;

export const bytesPerElement: Record<DType, number> = {
  f64: 8,
  f32: 4,
  f16: 2,
  bf16: 2,
  i32: 4,
};
