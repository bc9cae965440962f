import type { DType, HostArray } from './dtype';
import type { KernelTable, ManyKernelTable, OperatorName } from './ops';
import type { TensorSpec } from './tensor';

declare const storageBrand: unique symbol;

/** A backend's own memory; opaque to everyone else. */
export interface Storage {
  readonly [storageBrand]?: never;
}

/** Bytes and counts since the backend was opened. */
export interface MemoryStatistics {
  readonly bytesInUse: number;
  readonly peakBytes: number;
  readonly allocations: number;
}

/** Commands that were enqueued once and can be enqueued again. */
export interface Recording {
  /**
   * Enqueues the same commands on the same memory, and hands them to the
   * device. False, with nothing enqueued, where memory that they use was freed.
   */
  replay(): boolean;
  /** Gives back the memory that only the recording uses. */
  free(): void;
}

/**
 * Where operators run. Kernels enqueue and return; they run in order; `read`
 * is the only wait. A backend does not check shapes: `ops/` has done it once,
 * for all of them.
 */
export interface Backend {
  /** Short and unique: `cpu`, `webgpu`, `cuda`. */
  readonly name: string;
  /** The device in words, for tables and reports. */
  readonly description: string;
  /** What this backend can run. A missing entry is an operator it lacks. */
  readonly kernels: KernelTable;
  /**
   * Kernels that take many calls at once, for operators of which one call is
   * little work. No call reads what another one writes; several may add to one
   * tensor, or write different rows of one. A backend that gains nothing by it
   * leaves them out.
   */
  readonly manyKernels?: ManyKernelTable;

  /** `true`, or the reason why not, for these operands. */
  supports(
    operator: OperatorName,
    inputs: Readonly<Record<string, TensorSpec | undefined>>,
    attributes: unknown,
  ): true | string;

  /**
   * Memory for `elements` elements; the contents are unspecified.
   * @throws OutOfMemoryError
   */
  allocate(elements: number, dtype: DType): Storage;
  /** Copies host data to the device, from element `offset` on. */
  write(storage: Storage, data: HostArray, offset?: number): void;
  /** Waits for everything enqueued, then copies to the host. */
  read(storage: Storage): Promise<HostArray>;
  /** Device to device; offsets and length in elements. */
  copy(
    source: Storage,
    sourceOffset: number,
    target: Storage,
    targetOffset: number,
    length: number,
  ): void;
  free(storage: Storage): void;
  /**
   * Runs `body`, which copies whole storages of another backend to this one's,
   * of the same size and type, without the host. It only enqueues, and gives
   * the other backend nothing: copies run behind what that one was given before
   * and in order with what this one is given, and what that one is given later
   * runs behind all of `body`. False, with nothing done, where it cannot copy
   * from that backend; a backend that can from none leaves this out.
   */
  receive?(
    from: Backend,
    body: (copy: (source: Storage, target: Storage) => void) => void,
  ): boolean;

  /**
   * Runs `body`, which only enqueues, and keeps its commands; not what it writes
   * from the host, which is there before they run for the first time. What `body`
   * allocates and frees stays reserved for them. A backend that gains nothing
   * by it leaves this out.
   */
  record?(body: () => void): Recording;
  /**
   * A recording takes no more memory than its commands do otherwise: what `body`
   * frees is handed out again within it.
   */
  readonly isRecordingCompact?: boolean;
  /** Tokens of a prompt that it likes to run at a time; 256 when left out. */
  readonly chunk?: number;

  /** Hands what is enqueued to the device without waiting. */
  flush(): void;
  /** Waits until the device is idle. */
  synchronize(): Promise<void>;
  memory(): MemoryStatistics;
  /** Frees everything. The backend is unusable afterwards. */
  destroy(): Promise<void>;
}
