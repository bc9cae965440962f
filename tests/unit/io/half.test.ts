import { describe, expect, test } from 'vitest';
import {
  bf16FromNumber,
  bf16ToF32,
  bf16ToNumber,
  f16FromNumber,
  f16ToF32,
  f16ToNumber,
  f32ToBf16,
  f32ToF16,
} from '../../../packages/core/src/half';

interface Format {
  name: string;
  exponentBits: number;
  mantissaBits: number;
  toNumber: (bits: number) => number;
  fromNumber: (value: number) => number;
  widen: (bits: Uint16Array) => Float32Array;
  narrow: (values: Float32Array) => Uint16Array;
}

const formats: Format[] = [
  {
    name: 'f16',
    exponentBits: 5,
    mantissaBits: 10,
    toNumber: f16ToNumber,
    fromNumber: f16FromNumber,
    widen: f16ToF32,
    narrow: f32ToF16,
  },
  {
    name: 'bf16',
    exponentBits: 8,
    mantissaBits: 7,
    toNumber: bf16ToNumber,
    fromNumber: bf16FromNumber,
    widen: bf16ToF32,
    narrow: f32ToBf16,
  },
];

/** The definition of IEEE 754, section 3.4, in float64. */
function definition(bits: number, format: Format): number {
  const { exponentBits, mantissaBits } = format;
  const sign = bits >> 15 ? -1 : 1;
  const top = 2 ** exponentBits - 1;
  const exponent = (bits >> mantissaBits) & top;
  const mantissa = bits & (2 ** mantissaBits - 1);
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === top) return mantissa ? Number.NaN : sign * Infinity;
  const fraction = mantissa / 2 ** mantissaBits;
  return exponent === 0
    ? sign * fraction * 2 ** (1 - bias)
    : sign * (1 + fraction) * 2 ** (exponent - bias);
}

const everyPattern = Uint16Array.from({ length: 65536 }, (_, i) => i);

/** The neighbours of an f32 value. */
function step(value: number, by: 1 | -1): number {
  const bits = new Int32Array(new Float32Array([value]).buffer);
  bits[0]! += by;
  return new Float32Array(bits.buffer)[0]!;
}

describe.each(formats)('$name', (format) => {
  const infinity = (2 ** format.exponentBits - 1) << format.mantissaBits;

  test('widens all 65,536 patterns to what the standard defines', () => {
    const values = format.widen(everyPattern);
    const wrong = everyPattern.filter((bits) => {
      const want = definition(bits, format);
      return (
        !Object.is(values[bits], want) ||
        !Object.is(format.toNumber(bits), want)
      );
    });
    expect(wrong).toHaveLength(0);
  });

  test('all 65,536 patterns come back, NaN payloads and -0 included', () => {
    const quiet = 1 << (format.mantissaBits - 1);
    const back = format.narrow(format.widen(everyPattern));
    const wrong = everyPattern.filter((bits) => {
      const nan = Number.isNaN(definition(bits, format));
      return back[bits] !== (nan ? bits | quiet : bits);
    });
    expect(wrong).toHaveLength(0);
  });

  test('rounds to nearest, ties to even, around every pair of neighbours', () => {
    const wrong: number[] = [];
    for (let low = 0; low < infinity; low++) {
      const a = definition(low, format);
      // Past the largest value the next would be, were it finite.
      const b =
        low + 1 === infinity
          ? 2 * a - definition(low - 1, format)
          : definition(low + 1, format);
      const middle = (a + b) / 2;
      const even = low % 2 === 0 ? low : low + 1;
      const cases: [number, number][] = [
        [middle, even],
        [step(middle, -1), low],
        [step(middle, 1), low + 1],
      ];
      for (const [value, want] of cases) {
        const got = format.fromNumber(value);
        const negative = format.fromNumber(-value);
        if (got !== want || negative !== (want | 0x8000)) wrong.push(value);
      }
    }
    expect(wrong).toEqual([]);
  });

  test('keeps NaN a NaN, and its sign, whatever its payload', () => {
    const bits = Uint32Array.of(0x7f800001, 0xff800001, 0x7fffffff, 0xffc00000);
    const got = format.narrow(new Float32Array(bits.buffer));
    expect([...got].map((half) => half >> 15)).toEqual([0, 1, 0, 1]);
    expect([...got].every((half) => (half & 0x7fff) > infinity)).toBe(true);
  });

  test('overflows to infinity of the same sign', () => {
    const largest = 3.4028234663852886e38;
    expect(format.fromNumber(Infinity)).toBe(infinity);
    expect(format.fromNumber(-largest)).toBe(infinity | 0x8000);
    expect(format.fromNumber(largest)).toBe(infinity);
  });

  test('converts views that do not start at their buffer', () => {
    const values = new Float32Array([9, 1.5, -2]).subarray(1);
    expect([...format.widen(format.narrow(values))]).toEqual([1.5, -2]);
    const bits = format.narrow(new Float32Array([9, 1.5, -2])).subarray(1);
    expect([...format.widen(bits)]).toEqual([1.5, -2]);
    expect(format.narrow(new Float32Array(0))).toHaveLength(0);
  });
});
