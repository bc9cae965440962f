import { program, quotient } from '../program';
import type { KernelContext, Kernels } from './context';

/** Takes quarter turns off an angle of up to 2^17: `NAME` is left, `nNAME` gone. */
const lessQuarters = (name: string, angle: string) => `
  const ${name}0 = ${angle};
  const n${name} = Math.floor(${name}0 * 0.636619772367581 + 0.5);
  const ${name}1 = Math.floor(n${name} / 256) * 256;
  const ${name} = (((${name}0 - ${name}1 * 1.5703125)
    - (n${name} - ${name}1) * 1.5703125)
    - n${name} * 0.0004837512969970703) - n${name} * 0.00000007549789948768648;`;

/**
 * A shader's sine is exact to 2^-11 only, and near 0 only. Here the product of
 * position and frequency is split so that its parts are exact, quarter turns
 * are taken off in parts of few digits, and polynomials do the rest.
 * Source: Cody and Waite, Software Manual for the Elementary Functions, 1980;
 * coefficients of Cephes' sinf and cosf.
 */
const cosSin = `
  const coarse = Math.floor(position / 2048) * 2048;
  const high = Math.floor(frequency * 4096) / 4096;
  ${lessQuarters('a', 'coarse * high')}
  ${lessQuarters('b', '(position - coarse) * high')}
  ${lessQuarters('c', 'position * (frequency - high)')}
  ${lessQuarters('d', 'a + b + c')}
  const z = d * d;
  const sine = d + d * z * (-0.16666654611
    + z * (0.0083321608736 - z * 0.00019515295891));
  const cosine = 1 - 0.5 * z + z * z * (0.04166664568298827
    + z * (-0.001388731625493765 + z * 0.00002443315711809948));
  const n = na + nb + nc + nd;
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
  const position = positions[this.thread.y];
  const frequency = frequencies[Math.floor(pair)];
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
