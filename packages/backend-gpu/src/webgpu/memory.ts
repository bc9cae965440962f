import {
  bytesPerElement,
  type DType,
  type Storage,
  TensorStateError,
} from '@asa/core';
import type { PooledBuffer } from './buffers';

/** Device memory behind a tensor, until it is freed. */
export class Memory {
  private current: PooledBuffer | undefined;

  constructor(
    buffer: PooledBuffer,
    readonly elements: number,
    readonly dtype: DType,
  ) {
    this.current = buffer;
  }

  get bytes(): number {
    return this.elements * bytesPerElement[this.dtype];
  }

  /** Bytes that are copied: a multiple of 4, never 0. */
  get paddedBytes(): number {
    return Math.max(4, Math.ceil(this.bytes / 4) * 4);
  }

  /** Bytes of a binding: also of no elements one vector, as kernels declare. */
  get boundBytes(): number {
    return Math.max(16, this.paddedBytes);
  }

  /** Whether this is still the buffer behind it. */
  lies(buffer: PooledBuffer): boolean {
    return this.current === buffer;
  }

  /** @throws TensorStateError after `release`. */
  get buffer(): PooledBuffer {
    if (this.current === undefined) {
      throw new TensorStateError('webgpu: memory was used after it was freed');
    }
    return this.current;
  }

  /** Takes another buffer; returns the old one. */
  exchange(buffer: PooledBuffer): PooledBuffer {
    const old = this.buffer;
    this.current = buffer;
    return old;
  }

  release(): PooledBuffer {
    const old = this.buffer;
    this.current = undefined;
    return old;
  }
}

/** @throws TensorStateError for another backend's storage. */
export function memoryOf(storage: Storage): Memory {
  if (storage instanceof Memory) return storage;
  throw new TensorStateError('webgpu: the storage belongs to another backend');
}
