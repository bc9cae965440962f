import {
  type DType,
  DTypeError,
  type HostArray,
  type Storage,
  TensorStateError,
} from '@asa/core';

/** A typed array behind a tensor, until it is freed. */
export class Memory {
  private array: HostArray | undefined;

  constructor(
    array: HostArray,
    readonly dtype: DType,
  ) {
    this.array = array;
  }

  /** @throws TensorStateError after `release`. */
  get data(): HostArray {
    if (this.array === undefined) {
      throw new TensorStateError('cpu: memory was used after it was freed');
    }
    return this.array;
  }

  /** Bytes that the array holds; 0 after `release`. */
  get bytes(): number {
    return this.array?.byteLength ?? 0;
  }

  release(): void {
    this.array = undefined;
  }
}

/** @throws TensorStateError for another backend's storage. */
export function memoryOf(storage: Storage): Memory {
  if (storage instanceof Memory) return storage;
  throw new TensorStateError('cpu: the storage belongs to another backend');
}

const arrayTypes = {
  f64: Float64Array,
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
} as const;

/** A new array of zeros. Throws RangeError where the host has no room. */
export function createArray(elements: number, dtype: DType): HostArray {
  return new arrayTypes[dtype](elements);
}

/** @throws DTypeError when host data is not of a tensor's element type. */
export function checkArray(data: HostArray, dtype: DType): void {
  if (!(data instanceof arrayTypes[dtype])) {
    throw new DTypeError(
      `write: data of ${dtype} must be a ${arrayTypes[dtype].name}, got ${data.constructor.name}`,
    );
  }
}

/** A NaN in f16 and in bf16. */
const NAN_BITS = 0x7fff;

/** Fills memory with what no computation gives by chance. */
export function poison(array: HostArray): void {
  if (array instanceof Int32Array) array.fill(-(2 ** 31));
  else array.fill(array instanceof Uint16Array ? NAN_BITS : Number.NaN);
}
