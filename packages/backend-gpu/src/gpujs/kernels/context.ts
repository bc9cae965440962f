import type { KernelTable, Tensor } from '@asa/core';
import type { Memory, Place } from '../memory';
import type { Threads } from '../processor';
import type { Arguments, Program } from '../program';

/** What kernels need of the backend. */
export interface KernelContext {
  /**
   * Enqueues one call of a program for each element of `target`, which may be
   * an argument too: the result takes its place afterwards.
   */
  run<P extends Program>(
    called: P,
    values: Arguments<P, Place>,
    target: Place,
    threads: Threads,
  ): void;
  /** Memory between the programs of one operator; the kernel releases it. */
  scratch(elements: number): Memory;
  /** Numbers from the host; the kernel releases them. */
  table(values: ArrayLike<number>): Memory;
  release(memory: Memory): void;
  /** Elements of one memory into the middle of another. */
  copyElements(
    source: Place,
    from: number,
    target: Place,
    start: number,
    length: number,
  ): void;
}

/** Some kernels, each of its operator's type. */
export type Kernels<Name extends keyof KernelTable> = Required<
  Pick<KernelTable, Name>
>;

/** The extent of an axis of checked operands. */
export function extent(tensor: Tensor, axis: number): number {
  return tensor.shape.at(axis) ?? 1;
}
