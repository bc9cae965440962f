import {
  ArgumentError,
  type Backend,
  bytesPerElement,
  type DType,
  type HostArray,
  type KernelTable,
  type MemoryStatistics,
  type OperatorName,
  OutOfMemoryError,
  type Storage,
  TensorStateError,
} from '@asa/core';
import { kernels } from './kernels';
import { checkArray, createArray, Memory, memoryOf, poison } from './memory';

export interface CpuOptions {
  /** Bytes that tensors may hold at a time; what the host gives when missing. */
  readonly limitBytes?: number;
  /** New memory holds NaN (-2^31 in i32), so that tests see it being read. */
  readonly poison?: boolean;
}

/**
 * The reference backend: plain loops, sums in float64, one thread. It runs
 * every operator in every type, wholly in double where the operands are f64.
 * @throws ArgumentError when `limitBytes` is no byte count.
 */
export async function openCpu(options: CpuOptions = {}): Promise<Backend> {
  const { limitBytes = Number.POSITIVE_INFINITY } = options;
  if (!(limitBytes >= 0)) {
    throw new ArgumentError(
      `cpu: limitBytes must be a number of at least 0, got ${limitBytes}`,
    );
  }
  return new CpuBackend(limitBytes, options.poison ?? false);
}

class CpuBackend implements Backend {
  readonly name = 'cpu';
  readonly description = 'JavaScript on one CPU thread';

  private readonly live = new Set<Memory>();
  private bytesInUse = 0;
  private peakBytes = 0;
  private allocations = 0;
  private destroyed = false;

  constructor(
    private readonly limitBytes: number,
    private readonly poison: boolean,
  ) {}

  get kernels(): KernelTable {
    this.checkOpen();
    return kernels;
  }

  supports(operator: OperatorName): true | string {
    this.checkOpen();
    return kernels[operator] === undefined ? 'it has no kernel for it' : true;
  }

  allocate(elements: number, dtype: DType): Storage {
    this.checkOpen();
    const memory = new Memory(this.createArray(elements, dtype), dtype);
    if (this.poison) poison(memory.data);
    this.live.add(memory);
    this.bytesInUse += memory.bytes;
    this.peakBytes = Math.max(this.peakBytes, this.bytesInUse);
    this.allocations += 1;
    return memory as Storage;
  }

  write(storage: Storage, data: HostArray, offset = 0): void {
    this.checkOpen();
    const memory = memoryOf(storage);
    checkArray(data, memory.dtype);
    checkRange('write', memory, offset, data.length);
    memory.data.set(data, offset);
  }

  async read(storage: Storage): Promise<HostArray> {
    this.checkOpen();
    return memoryOf(storage).data.slice();
  }

  copy(
    source: Storage,
    sourceOffset: number,
    target: Storage,
    targetOffset: number,
    length: number,
  ): void {
    this.checkOpen();
    const from = memoryOf(source);
    const to = memoryOf(target);
    checkArray(from.data, to.dtype);
    checkRange('copy', from, sourceOffset, length);
    checkRange('copy', to, targetOffset, length);
    to.data.set(
      from.data.subarray(sourceOffset, sourceOffset + length),
      targetOffset,
    );
  }

  /** Harmless after `destroy`, so that owners can clean up in any order. */
  free(storage: Storage): void {
    const memory = memoryOf(storage);
    if (!this.live.delete(memory)) return;
    this.bytesInUse -= memory.bytes;
    memory.release();
  }

  flush(): void {
    this.checkOpen();
  }

  async synchronize(): Promise<void> {
    this.checkOpen();
  }

  memory(): MemoryStatistics {
    this.checkOpen();
    const { bytesInUse, peakBytes, allocations } = this;
    return { bytesInUse, peakBytes, allocations };
  }

  async destroy(): Promise<void> {
    for (const memory of this.live) this.free(memory as Storage);
    this.destroyed = true;
  }

  private createArray(elements: number, dtype: DType): HostArray {
    const asked = elements * bytesPerElement[dtype];
    if (this.bytesInUse + asked > this.limitBytes) {
      throw new OutOfMemoryError(
        asked,
        this.bytesInUse,
        `the limit is ${this.limitBytes} bytes`,
      );
    }
    try {
      return createArray(elements, dtype);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new OutOfMemoryError(asked, this.bytesInUse, error.message);
    }
  }

  private checkOpen(): void {
    if (this.destroyed) {
      throw new TensorStateError('cpu: the backend was destroyed');
    }
  }
}

function checkRange(
  operation: string,
  { data }: Memory,
  offset: number,
  length: number,
): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= data.length)) {
    throw new ArgumentError(
      `${operation}: elements ${offset} to ${offset + length} must lie in the ${data.length} of the tensor`,
    );
  }
}
