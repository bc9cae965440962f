import {
  ArgumentError,
  AsaError,
  type Backend,
  type DType,
  DTypeError,
  type HostArray,
  type KernelTable,
  type MemoryStatistics,
  type OperatorName,
  OutOfMemoryError,
  type Storage,
  type TensorSpec,
  TensorStateError,
} from '@asa/core';
import { checkCopy, checkRange } from '../ranges';
import { createKernels } from './kernels';
import type { KernelContext } from './kernels/context';
import { Memory, memoryOf, type Place, placeOf } from './memory';
import type { ModeName } from './modes';
import type { Processor, Threads } from './processor';
import { type Program, program } from './program';

/** Whole numbers live in f32, which holds them exactly up to here. */
const largestInteger = 2 ** 24;
/** 65,535 groups of eight threads, the most of a dispatch's second axis. */
const mostRows = 65_535 * 8;
/** Operators that have their rows on the third axis, and the most of that. */
const deep: ReadonlySet<OperatorName> = new Set([
  'linearAttention',
  'linearAttentionBackward',
  'selectBlocks',
] as const);
const mostDeepRows = 65_535;

/** Elements `[start, start + length)` of x, in the middle of target. */
const splice = program(
  'splice',
  { arrays: ['target', 'x'], integers: ['from', 'start', 'length'] },
  `if (this.thread.x >= start && this.thread.x < start + length) {
    return x[from + this.thread.x - start];
  }
  return target[this.thread.x];`,
);

const slice = program(
  'slice',
  { arrays: ['x'], integers: ['from'] },
  'return x[from + this.thread.x];',
);

/**
 * Operators as JavaScript functions that gpu.js translates. gpu.js's WebGPU
 * mode is asynchronous: what is enqueued waits in a chain of promises, and an
 * error in it is thrown by each `read` from then on.
 */
export class GpuJsBackend implements Backend, KernelContext {
  readonly name = 'gpujs';
  readonly kernels: KernelTable;
  private readonly live = new Set<Memory>();
  private bytesInUse = 0;
  private peakBytes = 0;
  private allocations = 0;
  private destroyed = false;
  private tail: Promise<void> = Promise.resolve();
  private failure: { readonly error: unknown } | undefined;
  private complaint: AsaError | undefined;

  /** @param close gives back what gpu.js keeps beyond its kernels. */
  constructor(
    private readonly processor: Processor,
    readonly mode: ModeName,
    readonly description: string,
    private readonly limitBytes: number,
    private readonly close: () => Promise<void>,
  ) {
    this.kernels = createKernels(this);
  }

  supports(
    operator: OperatorName,
    inputs: Readonly<Record<string, TensorSpec | undefined>>,
    attributes: unknown,
  ): true | string {
    this.checkOpen();
    if (!(operator in this.kernels)) return 'it has no kernel for it';
    for (const [name, spec] of Object.entries(inputs)) {
      const reason = spec && reasonAgainst(operator, name, spec);
      if (reason) return reason;
    }
    const wanted = (attributes as { readonly dtype?: DType } | undefined)
      ?.dtype;
    return wanted && !isStored(wanted)
      ? `gpu.js has no ${wanted}, and ${wanted} is asked for`
      : true;
  }

  allocate(elements: number, dtype: DType): Storage {
    this.checkOpen();
    if (!isStored(dtype)) {
      throw new DTypeError(`allocate: gpu.js has no ${dtype}, got ${dtype}`);
    }
    const memory = new Memory(elements, dtype);
    if (this.bytesInUse + memory.bytes > this.limitBytes) {
      const limit = `the limit is ${this.limitBytes} bytes`;
      throw new OutOfMemoryError(memory.bytes, this.bytesInUse, limit);
    }
    this.live.add(memory);
    this.bytesInUse += memory.bytes;
    this.peakBytes = Math.max(this.peakBytes, this.bytesInUse);
    this.allocations += 1;
    return memory as Storage;
  }

  /** @throws ArgumentError for integers that f32 does not hold. */
  write(storage: Storage, data: HostArray, offset = 0): void {
    this.checkOpen();
    const memory = memoryOf(storage);
    checkData(memory, data);
    checkRange('write', memory, offset, data.length);
    if (data.length === 0) return;
    // A copy: the caller may go on to change the array.
    const values = Float32Array.from(data);
    if (values.length === memory.elements) {
      this.upload(memory, values);
      return;
    }
    const part = this.table(values);
    this.copyElements(part, 0, memory, offset, values.length);
    this.release(part);
  }

  async read(storage: Storage): Promise<HostArray> {
    this.checkOpen();
    const memory = memoryOf(storage);
    const { elements, dtype } = memory;
    let values: Float32Array = new Float32Array();
    this.enqueue(async () => {
      const contents = await this.contentsOf(memory);
      values = await this.processor.download(contents, Math.max(1, elements));
    });
    await this.synchronize();
    values = values.subarray(0, elements);
    return dtype === 'i32' ? Int32Array.from(values) : values;
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
    checkCopy(from, sourceOffset, to, targetOffset, length);
    if (length > 0) {
      this.copyElements(from, sourceOffset, to, targetOffset, length);
    }
  }

  /** Harmless after `destroy`, so that owners can clean up in any order. */
  free(storage: Storage): void {
    if (!(storage instanceof Memory)) memoryOf(storage);
    const memory = storage as Memory;
    if (!this.live.delete(memory)) return;
    this.bytesInUse -= memory.bytes;
    this.release(memory);
  }

  /** What is enqueued is on its way already. */
  flush(): void {
    this.checkOpen();
  }

  /** @throws the first error among all that was enqueued so far. */
  async synchronize(): Promise<void> {
    this.checkOpen();
    await this.tail;
    // What a call threw says more than what the device says of it.
    if (this.failure) throw this.failure.error;
    if (this.complaint) throw this.complaint;
  }

  memory(): MemoryStatistics {
    this.checkOpen();
    const { bytesInUse, peakBytes, allocations } = this;
    return { bytesInUse, peakBytes, allocations };
  }

  async destroy(): Promise<void> {
    if (this.destroyed) return;
    for (const memory of this.live) this.free(memory as Storage);
    this.destroyed = true;
    await this.tail;
    await this.processor.destroy();
    await this.close();
  }

  /** The device says that something went wrong; it names no call. */
  complain(message: string): void {
    this.complaint ??= new AsaError(`gpujs: the device reports, ${message}`);
  }

  run(
    called: Program,
    values: Readonly<Record<string, Place | number | undefined>>,
    target: Place,
    threads: Threads,
  ): void {
    this.checkOpen();
    const to = placeOf(target);
    const { arrays, integers, reals } = called;
    const from = arrays.map((name) => placeOf(values[name] as Place));
    const numbers = [...integers, ...reals].map((name) => Number(values[name]));
    // Nothing to compute: gpu.js has no empty results.
    if (to.elements === 0) return;
    this.enqueue(async () => {
      const operands = [];
      for (const memory of from) operands.push(await this.contentsOf(memory));
      const made = await this.processor.run(
        called,
        [...operands, ...numbers],
        threads,
      );
      this.processor.release(to.contents);
      to.contents = made;
    });
  }

  scratch(elements: number): Memory {
    return new Memory(elements, 'f32');
  }

  table(values: ArrayLike<number>): Memory {
    const memory = new Memory(values.length, 'f32');
    this.upload(memory, Float32Array.from(values));
    return memory;
  }

  /** Behind all that was enqueued before. */
  release(memory: Memory): void {
    memory.isFreed = true;
    this.enqueue(async () => {
      this.processor.release(memory.contents);
      memory.contents = undefined;
    }, true);
  }

  copyElements(
    source: Place,
    from: number,
    target: Place,
    start: number,
    length: number,
  ): void {
    const [x, to] = [placeOf(source), placeOf(target)];
    if (length === to.elements) {
      this.run(slice, { x, from }, to, [length]);
    } else {
      const values = { target: to, x, from, start, length };
      this.run(splice, values, to, [to.elements]);
    }
  }

  private upload(memory: Memory, data: Float32Array): void {
    if (data.length === 0) return;
    this.enqueue(async () => {
      this.processor.release(memory.contents);
      memory.contents = await this.processor.upload(data);
    });
  }

  /** gpu.js has no empty arrays: what holds nothing holds a 0. */
  private async contentsOf(memory: Memory) {
    memory.contents ??= await this.processor.upload(
      new Float32Array(Math.max(1, memory.elements)),
    );
    return memory.contents;
  }

  /** @param always also behind a failure. */
  private enqueue(work: () => Promise<void>, always = false): void {
    this.tail = this.tail.then(async () => {
      if (this.failure && !always) return;
      try {
        await work();
      } catch (error) {
        this.failure = { error };
      }
    });
  }

  private checkOpen(): void {
    if (this.destroyed) {
      throw new TensorStateError('gpujs: the backend was destroyed');
    }
  }
}

function isStored(dtype: DType): boolean {
  return dtype === 'f32' || dtype === 'i32';
}

function reasonAgainst(
  operator: OperatorName,
  name: string,
  { shape, dtype }: TensorSpec,
): string | undefined {
  if (!isStored(dtype)) {
    return `gpu.js has no ${dtype}, and ${name} is ${dtype}`;
  }
  const [first = 0] = shape;
  const flat = shape.slice(0, -1).reduce((size, n) => size * n, 1);
  const [rows, most] = deep.has(operator)
    ? [first, mostDeepRows]
    : [flat, mostRows];
  return shape.length > 1 && rows > most
    ? `gpu.js starts at most ${most} rows, and ${name} has ${rows}`
    : undefined;
}

function checkData({ dtype }: Memory, data: HostArray): void {
  const type = dtype === 'i32' ? Int32Array : Float32Array;
  if (!(data instanceof type)) {
    throw new DTypeError(
      `write: data of ${dtype} must be a ${type.name}, got ${data.constructor.name}`,
    );
  }
  if (!(data instanceof Int32Array)) return;
  const outside = data.find((value) => Math.abs(value) > largestInteger);
  if (outside !== undefined) {
    throw new ArgumentError(
      `write: gpu.js holds integers in f32, exact from -2^24 to 2^24, got ${outside}`,
    );
  }
}
