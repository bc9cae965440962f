import {
  bytesPerElement,
  type DType,
  type Storage,
  type Tensor,
  TensorStateError,
} from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';

/** tfjs's tensors never change: a write puts another in the place. */
export class Memory {
  private current: tf.Tensor | undefined;
  private isFreed = false;

  constructor(
    readonly elements: number,
    readonly dtype: DType,
  ) {}

  get bytes(): number {
    return this.elements * bytesPerElement[this.dtype];
  }

  /** Its elements; zeros where nothing was written yet. */
  get tensor(): tf.Tensor {
    if (this.isFreed) {
      throw new TensorStateError('tfjs: memory was used after it was freed');
    }
    this.current ??= tf.keep(tf.zeros([this.elements], this.type));
    return this.current;
  }

  get type(): 'int32' | 'float32' {
    return this.dtype === 'i32' ? 'int32' : 'float32';
  }

  /** Takes the tensor over. */
  set(tensor: tf.Tensor): void {
    this.current?.dispose();
    this.current = tf.keep(tensor);
  }

  free(): void {
    this.current?.dispose();
    this.current = undefined;
    this.isFreed = true;
  }
}

/** @throws TensorStateError for another backend's storage. */
export function memoryOf(storage: Storage): Memory {
  if (storage instanceof Memory) return storage;
  throw new TensorStateError('tfjs: the storage belongs to another backend');
}

/** The elements of an operand, in its shape. */
export function viewOf({ storage, shape }: Tensor): tf.Tensor {
  return tf.reshape(memoryOf(storage).tensor, [...shape]);
}
