import type { DType, KernelTable, Tensor } from '@asa/core';
import { flat, type Launch, unroll } from '../launch';
import type { MatrixUnit } from '../matrix-unit';

/** What kernels need of the backend. */
export interface KernelContext {
  /** The subgroups' products of f16 matrices, where kernels shall use them. */
  readonly matrixUnit: MatrixUnit | undefined;
  /** The same for attention's products. */
  readonly attentionUnit: MatrixUnit | undefined;
  /** Software compiles large tiles for minutes: small ones there. */
  readonly smallTiles: boolean;
  /** Enqueues one dispatch. */
  run(launch: Launch): void;
  /** Enqueues zeros for all of a tensor. */
  clear(tensor: Tensor): void;
  /** Memory between the dispatches of one operator; the kernel frees it. */
  scratch(elements: number, dtype: DType): Tensor;
}

/** Some kernels, each of its operator's type. */
export type Kernels<Name extends keyof KernelTable> = Required<
  Pick<KernelTable, Name>
>;

/** The extent of an axis of checked operands. */
export function extent(tensor: Tensor, axis: number): number {
  return tensor.shape.at(axis) ?? 1;
}

const THREADS = 256;

/**
 * One thread an element: grid and source, where `text` sees `i < u.count`.
 * The launch gives the uniform `count`.
 */
export function elementwise(
  count: number,
  text: () => string,
  declarations?: () => string,
): Pick<Launch, 'grid' | 'source'> {
  return {
    grid: flat(Math.ceil(count / THREADS)),
    source: () => ({
      threads: THREADS,
      declarations: declarations?.(),
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i >= u.count) { return; }
${text()}`,
    }),
  };
}

/**
 * `reduceSum(tid, x)` and `reduceMax(tid, x)`: the sum and the largest of all
 * threads' values, always in the same order.
 */
export function reductions(threads: number): string {
  const reduce = (name: string, combine: string) => `
fn ${name}(tid: u32, x: f32) -> f32 {
  workgroupBarrier();
  reduced[tid] = x;
  for (var half = ${threads / 2}u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (tid < half) {
      let a = reduced[tid];
      let b = reduced[tid + half];
      reduced[tid] = ${combine};
    }
  }
  workgroupBarrier();
  return reduced[0];
}`;
  return `var<workgroup> reduced: array<f32, ${threads}>;
${reduce('reduceSum', 'a + b')}
${reduce('reduceMax', 'max(a, b)')}`;
}

export const sigmoid = `fn sigmoid(x: f32) -> f32 {
  // exp of what is not positive: neither overflows.
  let e = exp(-abs(x));
  return select(e, 1.0, x >= 0.0) / (1.0 + e);
}`;

/** A sequence's row of the device's table, columns as in \`Sequence\`. */
export const sequenceOf = `struct Sequence {
  queryStart: u32, queryCount: u32, keyStart: u32,
  keyCount: u32, blockStart: u32, leaderStart: u32,
}
fn sequenceOf(s: u32) -> Sequence {
  let at = s * 6u;
  return Sequence(
    u32(sequences[at]), u32(sequences[at + 1u]), u32(sequences[at + 2u]),
    u32(sequences[at + 3u]), u32(sequences[at + 4u]), u32(sequences[at + 5u]),
  );
}`;

export { unroll };
