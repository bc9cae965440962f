import {
  bytesPerElement,
  type DType,
  type HostArray,
  type Storage,
  type Tensor,
  TensorStateError,
} from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';

/** Elements that the host keeps a copy of. */
const MOST_KNOWN = 2 ** 16;

/** tfjs's tensors never change: a write puts another in the place. */
export class Memory {
  private current: tf.Tensor | undefined;
  private isFreed = false;
  private known: HostArray | undefined;

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

  /** What the host wrote, where it is little and nothing was computed since. */
  get written(): HostArray | undefined {
    return this.known;
  }

  /** Takes the tensor over; `written` if it is the host's, and whole. */
  set(tensor: tf.Tensor, written?: HostArray): void {
    this.current?.dispose();
    this.current = tf.keep(tensor);
    this.known = this.elements <= MOST_KNOWN ? written : undefined;
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
