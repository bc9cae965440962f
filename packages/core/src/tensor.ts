import type { Backend, Storage } from './backend';
import type { DType } from './dtype';
import { ShapeError, TensorStateError } from './errors';

export type Shape = readonly number[];

/** Shape and element type: all that a shape check needs to know. */
export interface TensorSpec {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** Number of elements of a shape; 1 for `[]`. */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const extent of shape) size *= extent;
  return size;
}

/** `[2, 3, 4]` as errors and tables print it. */
export function formatShape(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

/** Device memory with an owner. Views made by `reshape` share it. */
export interface Allocation {
  readonly backend: Backend;
  readonly storage: Storage;
  freed: boolean;
}

/** A dense, row-major array on one backend. Immutable but for in-place operators. */
export class Tensor implements TensorSpec {
  constructor(
    readonly allocation: Allocation,
    readonly shape: Shape,
    readonly dtype: DType,
  ) {}

  get backend(): Backend {
    return this.allocation.backend;
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /**
   * The backend's memory behind this tensor.
   * @throws TensorStateError after `free`.
   */
  get storage(): Storage {
    if (this.allocation.freed) {
      throw new TensorStateError(
        `tensor: used after it was freed, shape ${formatShape(this.shape)}`,
      );
    }
    return this.allocation.storage;
  }

  /**
   * The same elements under another shape; no copy.
   * @throws ShapeError when the sizes differ.
   */
  reshape(shape: Shape): Tensor {
    if (sizeOf(shape) !== this.size) {
      throw new ShapeError(
        `reshape: sizes must agree, got ${formatShape(this.shape)} to ${formatShape(shape)}`,
      );
    }
    return new Tensor(this.allocation, shape, this.dtype);
  }

  /** Gives the memory back; freeing twice is harmless. */
  free(): void {
    if (this.allocation.freed) return;
    this.allocation.freed = true;
    this.allocation.backend.free(this.allocation.storage);
  }
}
