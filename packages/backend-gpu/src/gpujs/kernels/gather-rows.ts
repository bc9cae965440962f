import type { Tensor } from '@asa/core';
import type { Memory } from '../memory';
import { program } from '../program';
import type { KernelContext, Kernels } from './context';

const gather = program(
  'gatherRows',
  { arrays: ['x', 'rows'], integers: ['width'] },
  'return x[Math.floor(rows[this.thread.y]) * width + this.thread.x];',
);

/** The first i with rows[i] = r, or -1. */
const first = program(
  'firstOfRow',
  { arrays: ['rows'], integers: ['count'] },
  `for (let i = 0; i < count; i++) {
    if (rows[i] === this.thread.x) { return i; }
  }
  return -1;`,
);

/** The next i' behind i with rows[i'] = rows[i], or -1. */
const next = program(
  'nextOfRow',
  { arrays: ['rows'], integers: ['count'] },
  `const row = rows[this.thread.x];
  for (let i = 0; i < count; i++) {
    if (i > this.thread.x && rows[i] === row) { return i; }
  }
  return -1;`,
);

const backward = program(
  'gatherRowsBackward',
  { arrays: ['dy', 'firsts', 'nexts'], integers: ['width'] },
  `let sum = 0;
  let i = firsts[this.thread.y];
  while (i >= 0) {
    sum += dy[Math.floor(i) * width + this.thread.x];
    i = nexts[Math.floor(i)];
  }
  return sum;`,
);

/** For each of `extent` rows, the first i with `rows[i]` equal to it, or -1. */
export function firstsOf(
  context: KernelContext,
  rows: Tensor,
  extent: number,
): Memory {
  const firsts = context.scratch(extent);
  context.run(first, { rows, count: rows.size }, firsts, [extent]);
  return firsts;
}

export const gatherRowsKernels = (
  context: KernelContext,
): Kernels<'gatherRows' | 'gatherRowsBackward'> => ({
  /** y[i] = x[rows[i]] */
  gatherRows({ x, rows }, { y }) {
    const width = rows.size === 0 ? 0 : y.size / rows.size;
    context.run(gather, { x, rows, width }, y, [width, rows.size]);
  },

  /** dx[r] = sum of dy[i] over rows[i] = r, in the order of i */
  gatherRowsBackward({ dy, rows }, { dx }, { extent }) {
    const width = extent === 0 ? 0 : dx.size / extent;
    const firsts = firstsOf(context, rows, extent);
    const nexts = context.scratch(rows.size);
    context.run(next, { rows, count: rows.size }, nexts, [rows.size]);
    const values = { dy, firsts, nexts, width };
    context.run(backward, values, dx, [width, extent]);
    context.release(firsts);
    context.release(nexts);
  },
});
