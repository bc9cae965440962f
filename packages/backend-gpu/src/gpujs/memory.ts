import {
  bytesPerElement,
  type DType,
  type Storage,
  type Tensor,
  TensorStateError,
} from '@asa/core';
import type { Contents } from './processor';

/** gpu.js's results never change: a write puts another in the place. */
export class Memory {
  /** Set when its turn comes; nothing where nothing was written yet. */
  contents: Contents | undefined;
  isFreed = false;

  constructor(
    readonly elements: number,
    readonly dtype: DType,
  ) {}

  get bytes(): number {
    return this.elements * bytesPerElement[this.dtype];
  }
}

/** @throws TensorStateError for another backend's storage, or a freed one. */
export function memoryOf(storage: Storage): Memory {
  if (!(storage instanceof Memory)) {
    throw new TensorStateError('gpujs: the storage belongs to another backend');
  }
  if (storage.isFreed) {
    throw new TensorStateError('gpujs: memory was used after it was freed');
  }
  return storage;
}

/** What a kernel reads or writes: an operand, or its own scratch memory. */
export type Place = Tensor | Memory;

export function placeOf(place: Place): Memory {
  return place instanceof Memory ? place : memoryOf(place.storage);
}
