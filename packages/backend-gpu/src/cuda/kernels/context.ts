import type {
  Backend,
  DType,
  KernelTable,
  ManyKernelTable,
  Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Grid, i64, type Launch } from '../launch';
import type { Product } from '../products';

/** What kernels need of the backend. */
export interface KernelContext {
  readonly facts: DeviceFacts;
  /** Enqueues one launch. */
  run(launch: Launch): void;
  /** Enqueues one dense product, of some elements and some terms. */
  product(product: Product): void;
  /** Enqueues zeros for all of a tensor. */
  clear(tensor: Tensor): void;
  /** Enqueues a copy, as every backend does. */
  readonly copy: Backend['copy'];
  /** Memory between the launches of one operator; the kernel frees it. */
  scratch(elements: number, dtype: DType): Tensor;
}

/**
 * Bytes of scratch memory for what an operator does some of at a time: a small
 * share of the device's. Each time costs what its launches do until all have
 * work, 35 us on an H100.
 */
export const scratchBytes = ({ totalBytes }: DeviceFacts) =>
  Math.min(2 ** 30, totalBytes / 64);

/** Some kernels, each of its operator's type. */
export type Kernels<Name extends keyof KernelTable> = Required<
  Pick<KernelTable, Name>
>;

/** The same, of many calls at once. */
export type ManyKernels<Name extends keyof ManyKernelTable> = Required<
  Pick<ManyKernelTable, Name>
>;

/** The extent of an axis of checked operands. */
export function extent(tensor: Tensor, axis: number): number {
  return tensor.shape.at(axis) ?? 1;
}

/** The type `T` of a kernel's storage. */
export const typed = ({ dtype }: Tensor) => ({ T: dtype });

/** Threads of a block, where nothing says otherwise. */
export const THREADS = 256;

/** One thread an element. */
export function elementwise(count: number): {
  grid: Grid;
  threads: readonly [number];
} {
  return { grid: [Math.ceil(count / THREADS)], threads: [THREADS] };
}

/** Elements that a thread moves at once; as in pieces.cuh. */
export const PIECE = 8;

/** One thread a piece of an array. */
export const piecewise = (count: number) =>
  elementwise(Math.ceil(count / PIECE));

/** Lanes side by side that share a row of so many columns. */
export function lanesOf(width: number): number {
  const pieces = Math.max(1, Math.ceil(width / PIECE));
  return Math.min(32, 2 ** Math.ceil(Math.log2(pieces)));
}

/** A whole number of warps that covers a row, 256 threads at most. */
export function threadsFor(width: number): number {
  return Math.min(THREADS, Math.max(32, Math.ceil(width / 32) * 32));
}

/** `y[i] = bits`, for 32-bit elements. */
export function fillBits(
  context: KernelContext,
  y: Tensor,
  bits: number,
): void {
  context.run({
    file: 'fill',
    entry: 'fillBits',
    defines: {},
    ...elementwise(y.size),
    arguments: [y, { type: 'i32', value: bits }, i64(y.size)],
  });
}
