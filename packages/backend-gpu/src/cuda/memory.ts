import {
  bytesPerElement,
  type DType,
  type Storage,
  TensorStateError,
} from '@asa/core';
import type { Block } from './allocator';
import type { CudaPointer } from './bindings';

/** Device memory behind a tensor, until it is freed. */
export class Memory {
  private current: Block | undefined;

  constructor(
    block: Block,
    readonly elements: number,
    readonly dtype: DType,
  ) {
    this.current = block;
  }

  get bytes(): number {
    return this.elements * bytesPerElement[this.dtype];
  }

  get pointer(): CudaPointer {
    return this.block.pointer;
  }

  /** Takes another block; returns the old one. */
  exchange(block: Block): Block {
    const old = this.block;
    this.current = block;
    return old;
  }

  /** It is not freed, and still lies there. */
  lies(block: Block): boolean {
    return this.current === block;
  }

  release(): Block {
    const old = this.block;
    this.current = undefined;
    return old;
  }

  /** @throws TensorStateError after `release`. */
  get block(): Block {
    if (this.current === undefined) {
      throw new TensorStateError('cuda: memory was used after it was freed');
    }
    return this.current;
  }
}

/** @throws TensorStateError for another backend's storage. */
export function memoryOf(storage: Storage): Memory {
  if (storage instanceof Memory) return storage;
  throw new TensorStateError('cuda: the storage belongs to another backend');
}
