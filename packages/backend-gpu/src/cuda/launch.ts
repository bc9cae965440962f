import type { Tensor } from '@asa/core';
import type { KernelFile } from './kernels/sources';

/** Blocks on each axis: up to 2^31 - 1 on x, 65,535 on y and z. */
export type Grid = readonly [x: number, y?: number, z?: number];

/** Bytes of a `CUtensorMap`. */
export const BOXES_BYTES = 128;

interface Scalar {
  readonly type: 'i32' | 'i64' | 'f32';
  readonly value: number;
}

/**
 * A tensor `[rows, heads, columns]` of 16-bit elements, as copies of boxes of 64
 * columns see it (TMA; a `CUtensorMap`): columns behind its own are 0.
 */
export interface Boxes {
  readonly type: 'boxes';
  readonly tensor: Tensor;
  readonly extents: readonly [rows: number, heads: number, columns: number];
  /** Rows and heads of a box. */
  readonly box: readonly [rows: number, heads: number];
}

/** A tensor is its address, a missing one a null pointer. */
export type Argument = Tensor | Scalar | Boxes | undefined;

export const i32 = (value: number): Scalar => ({ type: 'i32', value });
export const i64 = (value: number): Scalar => ({ type: 'i64', value });
export const f32 = (value: number): Scalar => ({ type: 'f32', value });

export const isBoxes = (argument: Argument): argument is Boxes =>
  argument !== undefined && 'type' in argument && argument.type === 'boxes';

/** Boxes of so many rows and heads. */
export function boxes(tensor: Tensor, rows: number, heads = 1): Boxes {
  const [all = 1, own = 1, columns = 1] = tensor.shape;
  const extents = [all, own, columns] as const;
  return { type: 'boxes', tensor, extents, box: [rows, heads] };
}

/**
 * One kernel launch. Arguments stand in the order of the kernel's parameters;
 * structures are given field by field, in the same order. Where boxes come first,
 * one structure is all that the kernel takes: on which multiple of 64 a
 * parameter starts is not the host's to know.
 */
export interface Launch {
  readonly file: KernelFile;
  /** The function in that file. */
  readonly entry: string;
  /** What the file is compiled for: `T`, tile sizes. */
  readonly defines: Readonly<Record<string, string | number>>;
  readonly grid: Grid;
  readonly threads: readonly [x: number, y?: number];
  readonly sharedBytes?: number;
  /**
   * On compute capability 9.0 it may start while the kernel before it runs, once
   * that lets it (`letNextStart`): each of its threads waits for that one's end
   * (`awaitEarlier`) before it reads or writes memory.
   */
  readonly startsEarly?: boolean;
  readonly arguments: readonly Argument[];
}

/**
 * Writes arguments as C lays them out: each on a multiple of its own size.
 * Structures end on a multiple of 8, so one that does not fill its last 8
 * bytes is followed by a pointer or a 64-bit number only.
 * @param addressOf the address of a tensor's memory.
 * @param encode what stands for boxes, 128 bytes on a multiple of 64.
 * @returns the bytes written.
 */
export function packArguments(
  values: readonly Argument[],
  memory: DataView,
  addressOf: (tensor: Tensor) => number,
  encode: (boxes: Boxes) => Uint8Array,
): number {
  let at = 0;
  for (const value of values) {
    if (isBoxes(value)) {
      at = Math.ceil(at / 64) * 64;
      const { buffer, byteOffset } = memory;
      new Uint8Array(buffer, byteOffset + at).set(encode(value));
      at += BOXES_BYTES;
      continue;
    }
    const isSmall =
      value !== undefined && 'type' in value && value.type !== 'i64';
    const size = isSmall ? 4 : 8;
    at = Math.ceil(at / size) * size;
    write(memory, at, value, addressOf);
    at += size;
  }
  return at;
}

function write(
  memory: DataView,
  at: number,
  value: Tensor | Scalar | undefined,
  addressOf: (tensor: Tensor) => number,
): void {
  if (value === undefined) write64(memory, at, 0);
  else if (!('type' in value)) write64(memory, at, addressOf(value));
  else if (value.type === 'f32') memory.setFloat32(at, value.value, true);
  else if (value.type === 'i32') memory.setInt32(at, value.value, true);
  else write64(memory, at, value.value);
}

/** In two halves: a BigInt for each argument would cost more than the call. */
function write64(memory: DataView, at: number, value: number): void {
  memory.setUint32(at, value % 2 ** 32, true);
  memory.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}
