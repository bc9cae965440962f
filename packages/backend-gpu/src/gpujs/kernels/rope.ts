import { program, quotient } from '../program';
import type { KernelContext, Kernels } from './context';

/**
 * A shader's sine is exact to 2^-11 only, and near 0 only. Here quarter turns
 * are taken off in three parts of few digits, and polynomials do the rest.
 * Source: Cody and Waite, Software Manual for the Elementary Functions, 1980;
 * coefficients of Cephes' sinf and cosf.
 */
const cosSin = `const n = Math.floor(angle * 0.636619772367581 + 0.5);
  const a = ((angle - n * 1.5703125) - n * 0.0004837512969970703)
    - n * 0.00000007549789948768648;
  const z = a * a;
  const sine = a + a * z * (-0.16666654611
    + z * (0.0083321608736 - z * 0.00019515295891));
  const cosine = 1 - 0.5 * z + z * z * (0.04166664568298827
    + z * (-0.001388731625493765 + z * 0.00002443315711809948));
  const quarter = n - Math.floor(n / 4) * 4;
  let cos = cosine;
  let sin = sine;
  if (quarter === 1) { cos = -sine; sin = cosine; }
  if (quarter === 2) { cos = -cosine; sin = -sine; }
  if (quarter === 3) { cos = sine; sin = -cosine; }`;

const rope = program(
  'rope',
  {
    arrays: ['x', 'positions', 'frequencies'],
    integers: ['heads', 'width', 'step', 'apart'],
    reals: ['direction'],
  },
  // Pair i is the channels (i step, i step + apart).
  `const head = ${quotient('this.thread.x', 'width')};
  const channel = this.thread.x - head * width;
  let pair = channel;
  let isSecond = 0;
  if (step === 1) {
    if (channel >= apart) { pair = channel - apart; isSecond = 1; }
  } else {
    pair = Math.floor(channel / 2);
    isSecond = channel - pair * 2;
  }
  const angle = positions[this.thread.y] * frequencies[Math.floor(pair)];
  ${cosSin}
  const first = head * width + pair * step;
  const x1 = x[this.thread.y * heads * width + Math.floor(first)];
  const x2 = x[this.thread.y * heads * width + Math.floor(first) + apart];
  if (isSecond === 1) { return x1 * sin * direction + x2 * cos; }
  return x1 * cos - x2 * sin * direction;`,
);

export const ropeKernels = (context: KernelContext): Kernels<'rope'> => ({
  /**
   * [y1]   [cos -sin] [x1]
   * [y2] = [sin  cos] [x2], angle = position frequency
   */
  rope(inputs, { y }, { style, inverse = false }) {
    const [rows = 0, heads = 0, width = 0] = inputs.x.shape;
    const [step, apart] = style === 'half' ? [1, width / 2] : [2, 1];
    const direction = inverse ? -1 : 1;
    const sizes = { heads, width, step, apart, direction };
    context.run(rope, { ...inputs, ...sizes }, y, [heads * width, rows]);
  },
});
