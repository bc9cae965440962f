import {
  elements,
  type Floats,
  isHalf,
  type Kernels,
  readable,
  store,
} from './operands';

export const castKernels: Kernels<'cast'> = {
  /** y = x, rounded to nearest even once */
  cast(inputs, outputs) {
    const x = readable(inputs.x);
    if (isHalf(outputs.y)) store(singles(x), outputs.y);
    else elements(outputs.y).set(x);
  },
};

const single = new Float32Array(1);
const word = new Int32Array(single.buffer);

/**
 * f32 values that round to 16 bits as `values` do. A double that f32 cannot
 * hold goes to its neighbour with an odd last bit, and so never to a tie.
 * Source: S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded
 * sums: proved algorithms using rounding to odd", 2008.
 */
function singles(values: Floats): Float32Array {
  if (values instanceof Float32Array) return values;
  return Float32Array.from(values, (value) => {
    single[0] = value;
    const near = single[0];
    const bits = word[0] as number;
    if (near === value || Number.isNaN(value) || bits % 2 !== 0) return near;
    word[0] = bits + (Math.abs(value) > Math.abs(near) ? 1 : -1);
    return single[0];
  });
}
