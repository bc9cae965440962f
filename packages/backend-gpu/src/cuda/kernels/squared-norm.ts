import type { Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import {
  type KernelContext,
  type Kernels,
  type ManyKernels,
  PIECE,
  typed,
} from './context';
import { launchesOf, padded } from './many';

const THREADS = 256;
/** Elements of a block of threads, as in the kernel, and tensors of a launch. */
const ELEMENTS = 16 * PIECE * THREADS;
const MOST = 128;

const none = [undefined, i64(0), i64(0)];

export const squaredNormMany = (
  context: KernelContext,
): ManyKernels<'squaredNorm'> => ({
  /** Some sums side by side, then their sum: for each total that comes. */
  squaredNorm(calls) {
    const totals = new Map<Tensor, Tensor[]>();
    for (const { inputs } of calls) {
      const list = totals.get(inputs.total);
      if (list) list.push(inputs.x);
      else totals.set(inputs.total, [inputs.x]);
    }
    for (const [total, list] of totals) addSquares(context, list, total);
  },
});

export const squaredNormKernels = (
  context: KernelContext,
): Kernels<'squaredNorm'> => ({
  squaredNorm({ x, total }) {
    addSquares(context, [x], total);
  },
});

function addSquares(
  context: KernelContext,
  list: readonly Tensor[],
  total: Tensor,
): void {
  const launches = launchesOf(
    list,
    (a, b) => a.dtype === b.dtype,
    ({ size }) => size,
    { each: ELEMENTS, most: MOST },
  );
  const [common] = launches;
  if (!common) return;
  const sums = launches.reduce((sum, { blocks }) => sum + blocks, 0);
  const partial = context.scratch(sums, 'f32');
  let done = 0;
  for (const { first, parts, blocks } of launches) {
    const tensors = parts.map(({ call: x, start }) => [
      x,
      i64(x.size),
      i64(start),
    ]);
    context.run({
      file: 'squared-norm',
      entry: 'squaredNorm',
      defines: { ...typed(first), MOST },
      grid: [blocks],
      threads: [THREADS],
      arguments: [
        ...padded(tensors, none, MOST),
        partial,
        i64(done),
        i32(parts.length),
      ],
    });
    done += blocks;
  }
  context.run({
    file: 'squared-norm',
    entry: 'squaredNormTotal',
    defines: { ...typed(common.first), MOST },
    grid: [1],
    threads: [THREADS],
    arguments: [partial, total, i64(sums)],
  });
  partial.free();
}
