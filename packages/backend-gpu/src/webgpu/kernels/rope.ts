import { input, output, u32 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
} from './context';

export const ropeKernels = (context: KernelContext): Kernels<'rope'> => ({
  /**
   * [y1]   [cos -sin] [x1]
   * [y2] = [sin  cos] [x2], angle = position frequency
   */
  rope({ x, positions, frequencies }, { y }, { style, inverse = false }) {
    const width = extent(x, 2);
    const isHalf = style === 'half';
    const count = y.size / 2;
    context.run({
      kernel: 'rope',
      constants: { INVERSE: inverse ? 1 : 0 },
      variant: style,
      bindings: {
        x: input(x),
        positions: input(positions),
        frequencies: input(frequencies),
        y: output(y),
      },
      uniforms: {
        count: u32(count),
        heads: u32(extent(x, 1)),
        pairs: u32(width / 2),
      },
      ...elementwise(
        count,
        () => `let pair = i % u.pairs;
let row = i / u.pairs;
let first = row * 2u * u.pairs + pair${isHalf ? '' : ' * 2u'};
let second = first + ${isHalf ? 'u.pairs' : '1u'};
let turn = cosSin(positions[row / u.heads], frequencies[pair]);
let sine = select(turn.y, -turn.y, INVERSE == 1u);
let x1 = f32(x[first]);
let x2 = f32(x[second]);
y[first] = t_y(x1 * turn.x - x2 * sine);
y[second] = t_y(x1 * sine + x2 * turn.x);`,
        () => cosSin,
      ),
    });
  },
});

/**
 * WGSL promises cos and sin to 2^-11 only, near 0 only. Here the products are
 * split so that they are exact, quarter turns are taken off in three parts,
 * and polynomials do the rest. Source: Cody and Waite, Software Manual for the
 * Elementary Functions, 1980; coefficients of Cephes' sinf and cosf.
 */
const cosSin = `
// x less its quarter turns, and their number: parts of pi / 2 with few digits.
fn lessQuarters(x: f32) -> vec2f {
  let n = round(x * 0.636619772367581);
  let r = ((x - n * 1.5703125) - n * 4.837512969970703e-4) - n * 7.549789948768648e-8;
  return vec2f(r, n % 4.0);
}
fn cosSin(position: i32, frequency: f32) -> vec2f {
  // Twelve digits by twelve: each product is exact.
  let high = bitcast<f32>(bitcast<u32>(frequency) & 0xfffff000u);
  let low = frequency - high;
  let coarse = f32((position / 2048) * 2048);
  let fine = f32(position % 2048);
  let a = lessQuarters(coarse * high);
  let b = lessQuarters(fine * high);
  let c = lessQuarters(f32(position) * low);
  let all = lessQuarters(a.x + b.x + c.x);
  let quarters = (i32(a.y + b.y + c.y + all.y) + 16) % 4;
  let r = all.x;
  let z = r * r;
  let sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
  let cosine = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
  if (quarters == 0) { return vec2f(cosine, sine); }
  if (quarters == 1) { return vec2f(-sine, cosine); }
  if (quarters == 2) { return vec2f(-cosine, -sine); }
  return vec2f(sine, -cosine);
}`;
