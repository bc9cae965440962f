/**
 * The two 16-bit float formats as raw bits: IEEE 754 binary16 (`f16`) and
 * bfloat16 (`bf16`, the upper half of a binary32). Narrowing rounds to nearest
 * even and overflows to infinity; a NaN stays a NaN with its sign and upper
 * payload bits; widening is exact. A number is first rounded to f32.
 */

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

/** The f32 bit patterns, as u32, of an array of f32. */
const wordsOf = (values: Float32Array) =>
  new Uint32Array(values.buffer, values.byteOffset, values.length);

function wordOf(value: number): number {
  float[0] = value;
  return word[0] ?? 0;
}

function numberOf(bits: number): number {
  word[0] = bits;
  return float[0] ?? 0;
}

const INFINITY = 0x7f800000;
const QUIET_F16 = 0x7e00;
const INFINITY_F16 = 0x7c00;
/** 2^16: at and above, every f32 is infinite in f16. */
const OVERFLOW_F16 = 0x47800000;
/** 2^-14: below, an f16 is subnormal. */
const SMALLEST_NORMAL_F16 = 0x38800000;
/** The exponent biases, 127 of f32 less 15 of f16, in the f32's place. */
const REBIAS = (127 - 15) << 23;

function narrowF16(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > INFINITY) {
    return sign | QUIET_F16 | ((magnitude >>> 13) & 0x3ff);
  }
  if (magnitude >= OVERFLOW_F16) return sign | INFINITY_F16;
  if (magnitude < SMALLEST_NORMAL_F16) {
    // The f32 spacing at 0.5 is 2^-24, that of subnormal f16: adding 0.5
    // makes the hardware do the rounding.
    return sign | (wordOf(numberOf(magnitude) + 0.5) - wordOf(0.5));
  }
  const even = (magnitude >>> 13) & 1;
  return sign | ((magnitude - REBIAS + 0xfff + even) >>> 13);
}

function widenF16(bits: number): number {
  const sign = (bits & 0x8000) << 16;
  const magnitude = bits & 0x7fff;
  if (magnitude >= INFINITY_F16) return sign | INFINITY | (magnitude << 13);
  if (magnitude < 0x0400) return sign | wordOf(magnitude * 2 ** -24);
  return sign | ((magnitude << 13) + REBIAS);
}

function narrowBf16(bits: number): number {
  if ((bits & 0x7fffffff) > INFINITY) return (bits >>> 16) | 0x40;
  const even = (bits >>> 16) & 1;
  return (bits + 0x7fff + even) >>> 16;
}

const widenBf16 = (bits: number) => bits << 16;

/** The f16 bits nearest to a number. */
export const f16FromNumber = (value: number): number =>
  narrowF16(wordOf(value));

/** The number that f16 bits stand for. */
export const f16ToNumber = (bits: number): number => numberOf(widenF16(bits));

/** The bf16 bits nearest to a number. */
export const bf16FromNumber = (value: number): number =>
  narrowBf16(wordOf(value));

/** The number that bf16 bits stand for. */
export const bf16ToNumber = (bits: number): number => numberOf(widenBf16(bits));

/** f32 values as f16 bits, of the same length. */
export function f32ToF16(values: Float32Array): Uint16Array {
  const words = wordsOf(values);
  const bits = new Uint16Array(words.length);
  for (let i = 0; i < bits.length; i++) bits[i] = narrowF16(words[i] ?? 0);
  return bits;
}

/** f16 bits as f32 values, of the same length. */
export function f16ToF32(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  const words = wordsOf(values);
  for (let i = 0; i < bits.length; i++) words[i] = widenF16(bits[i] ?? 0);
  return values;
}

/** f32 values as bf16 bits, of the same length. */
export function f32ToBf16(values: Float32Array): Uint16Array {
  const words = wordsOf(values);
  const bits = new Uint16Array(words.length);
  for (let i = 0; i < bits.length; i++) bits[i] = narrowBf16(words[i] ?? 0);
  return bits;
}

/** bf16 bits as f32 values, of the same length. */
export function bf16ToF32(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  const words = wordsOf(values);
  for (let i = 0; i < bits.length; i++) words[i] = widenBf16(bits[i] ?? 0);
  return values;
}
