import {
  type Allocation,
  type Backend,
  bytesPerElement,
  type DType,
  DTypeError,
  type HostArray,
  type KernelTable,
  type ManyKernelTable,
  type MemoryStatistics,
  type OperatorName,
  type Recording,
  type Storage,
  Tensor,
  type TensorSpec,
  TensorStateError,
} from '@asa/core';
import { checkCopy, checkRange } from '../ranges';
import { Allocator } from './allocator';
import type {
  CudaEvent,
  CudaPointer,
  CudaStream,
  ProductLibrary,
} from './bindings';
import type { Compiler } from './compiler';
import type { DeviceFacts, Driver } from './driver';
import { Functions } from './functions';
import { giveBack } from './give-back';
import type { KernelCache } from './kernel-cache';
import {
  createKernels,
  createManyKernels,
  type KernelContext,
  reasonAgainst,
} from './kernels';
import { type Boxes, isBoxes, type Launch, packArguments } from './launch';
import { Memory, memoryOf } from './memory';
import { type Product, Products } from './products';
import { Recorded } from './recording';
import { Staging } from './staging';

/** What cuBLASLt may write between the steps of a product. */
const WORKSPACE_BYTES = 2 ** 25;

/**
 * Where kernels start early: the compute capability where that was measured, and
 * the first CUDA whose captures keep it.
 */
const EARLY = { capability: 90, version: 12_030 } as const;

export interface CudaBackendParts {
  readonly driver: Driver;
  readonly compiler: Compiler;
  readonly products: ProductLibrary;
  readonly cache: KernelCache;
  readonly device: number;
  readonly facts: DeviceFacts;
  readonly limitBytes: number;
  readonly poison: boolean;
  readonly allowTf32: boolean;
}

/** Operators as CUDA kernels on one device, in the order of one stream. */
export class CudaBackend implements Backend, KernelContext {
  readonly name = 'cuda';
  /** Enough rows to fill the device. */
  readonly chunk = 2048;
  readonly isRecordingCompact = true;
  readonly description: string;
  readonly kernels: KernelTable;
  readonly manyKernels: ManyKernelTable;
  readonly facts: DeviceFacts;

  private readonly driver: Driver;
  private readonly startsEarly: boolean;
  private readonly stream: CudaStream;
  /** Behind the work that another device has to wait for. */
  private readonly event: CudaEvent;
  /** Backends whose memory the device reaches as well as it can. */
  private readonly reached = new WeakSet<CudaBackend>();
  private readonly allocator: Allocator;
  private readonly staging: Staging;
  private readonly functions: Functions;
  private readonly products: Products;
  private readonly argumentView: DataView;
  private readonly live = new Set<Memory>();
  private bytesInUse = 0;
  private peakBytes = 0;
  private allocations = 0;
  private recorded: Recorded | undefined;
  private readonly recordings = new Set<Recorded>();
  private destroyed = false;

  constructor(private readonly parts: CudaBackendParts) {
    const { driver, facts, limitBytes } = parts;
    this.driver = driver;
    this.facts = facts;
    this.description = `${facts.name}, sm_${facts.capability}`;
    this.startsEarly =
      facts.capability === EARLY.capability &&
      driver.version() >= EARLY.version;
    driver.retainContext(parts.device);
    this.stream = driver.createStream();
    this.event = driver.createEvent();
    this.allocator = new Allocator(driver, limitBytes);
    this.staging = new Staging(driver, this.stream);
    this.functions = new Functions(
      driver,
      parts.compiler,
      parts.cache,
      facts.capability,
    );
    const workspace = this.allocator.take(WORKSPACE_BYTES, 0);
    this.products = new Products(
      parts.products,
      this.stream,
      workspace,
      parts.allowTf32,
      this.addressOf,
    );
    const { buffer, byteOffset, byteLength } = driver.argumentBytes;
    this.argumentView = new DataView(buffer, byteOffset, byteLength);
    this.kernels = createKernels(this);
    this.manyKernels = createManyKernels(this);
  }

  /** Device allocations since it was opened: a warm step makes none. */
  get buffersCreated(): number {
    return this.allocator.created;
  }

  supports(
    operator: OperatorName,
    inputs: Readonly<Record<string, TensorSpec | undefined>>,
    attributes: unknown,
  ): true | string {
    this.checkOpen();
    if (this.kernels[operator] === undefined) return 'it has no kernel for it';
    for (const name in inputs) {
      if (inputs[name]?.dtype === 'f64') {
        return `it computes in f32, and ${name} is f64`;
      }
    }
    return reasonAgainst(operator, inputs, attributes, this.facts);
  }

  allocate(elements: number, dtype: DType): Storage {
    this.check();
    const bytes = elements * bytesPerElement[dtype];
    const block = this.allocator.take(bytes, this.bytesInUse);
    const memory = new Memory(block, elements, dtype);
    this.live.add(memory);
    this.bytesInUse += bytes;
    this.peakBytes = Math.max(this.peakBytes, this.bytesInUse);
    this.allocations += 1;
    if (this.parts.poison) this.poison(memory);
    return memory as Storage;
  }

  write(storage: Storage, data: HostArray, offset = 0): void {
    this.check();
    const memory = memoryOf(storage);
    checkArray(data, memory.dtype);
    checkRange('write', memory, offset, data.length);
    this.recorded?.makeFresh(memory, this.bytesInUse);
    const { buffer, byteOffset, byteLength } = data;
    const target = memory.pointer + offset * bytesPerElement[memory.dtype];
    const bytes = new Uint8Array(buffer, byteOffset, byteLength);
    this.staging.write(target, bytes, this.hostStream);
  }

  async read(storage: Storage): Promise<HostArray> {
    this.check();
    this.checkNotRecording('read');
    const memory = memoryOf(storage);
    const { dtype, elements, pointer, bytes } = memory;
    const data = new Uint8Array(bytes);
    await this.staging.read(pointer, data);
    const { buffer } = data;
    return new arrayTypes[dtype](buffer, 0, elements);
  }

  copy(
    source: Storage,
    sourceOffset: number,
    target: Storage,
    targetOffset: number,
    length: number,
  ): void {
    this.check();
    const from = memoryOf(source);
    const to = memoryOf(target);
    checkCopy(from, sourceOffset, to, targetOffset, length);
    if (length === 0) return;
    const size = bytesPerElement[from.dtype];
    const start = this.use(from) + sourceOffset * size;
    const end = this.use(to) + targetOffset * size;
    if (from !== to) {
      this.driver.copyOnDevice(end, start, length * size, this.stream);
      return;
    }
    // Ranges of one tensor may overlap.
    const middle = this.scratch(length, from.dtype);
    const pointer = this.addressOf(middle);
    this.driver.copyOnDevice(pointer, start, length * size, this.stream);
    this.driver.copyOnDevice(end, pointer, length * size, this.stream);
    middle.free();
  }

  receive(
    from: Backend,
    body: (copy: (source: Storage, target: Storage) => void) => void,
  ): boolean {
    if (!(from instanceof CudaBackend && from.driver.knows(this.driver))) {
      return false;
    }
    this.checkReceives(from);
    this.reach(from);
    this.waitFor(from);
    try {
      body((source, target) => this.copyFrom(from, source, target));
    } finally {
      // Before then nothing there writes over what is copied.
      from.waitFor(this);
    }
    return true;
  }

  /** Harmless after `destroy`, so that owners can clean up in any order. */
  free(storage: Storage): void {
    const memory = memoryOf(storage);
    if (!this.live.delete(memory)) return;
    this.bytesInUse -= memory.bytes;
    this.allocator.give(memory.release());
  }

  /** Launches go to the device as they are made. */
  flush(): void {
    this.check();
  }

  async synchronize(): Promise<void> {
    this.check();
    this.checkNotRecording('synchronize');
    await this.staging.drain();
  }

  memory(): MemoryStatistics {
    this.checkOpen();
    const { bytesInUse, peakBytes, allocations } = this;
    return { bytesInUse, peakBytes, allocations };
  }

  record(body: () => void): Recording {
    this.check();
    this.checkNotRecording('record');
    const { driver, stream, allocator } = this;
    const recorded = new Recorded(driver, stream, allocator, {
      check: () => this.check(),
      forget: (freed) => this.recordings.delete(freed),
    });
    this.recorded = recorded;
    this.recordings.add(recorded);
    try {
      body();
      recorded.end((memory) => this.live.has(memory), this.bytesInUse);
    } catch (error) {
      recorded.abandon();
      throw error;
    } finally {
      this.recorded = undefined;
    }
    return recorded;
  }

  async destroy(): Promise<void> {
    if (this.destroyed) return;
    this.destroyed = true;
    for (const memory of this.live) this.free(memory as Storage);
    const { driver } = this;
    giveBack([
      () => driver.makeCurrent(),
      () => driver.synchronize(this.stream),
      ...[...this.recordings].map((recorded) => () => recorded.free()),
      () => this.staging.destroy(),
      () => this.products.destroy(),
      () => this.functions.destroy(),
      () => this.allocator.destroyAll(),
      () => driver.destroyEvent(this.event),
      () => driver.destroyStream(this.stream),
      () => driver.releaseContext(this.parts.device),
    ]);
  }

  run(launch: Launch): void {
    const [x, y = 1, z = 1] = launch.grid;
    if (x * y * z === 0) return;
    this.check();
    const kernel = this.functions.get(launch);
    const bytes = packArguments(
      launch.arguments,
      this.argumentView,
      this.addressOf,
      this.encode,
    );
    this.driver.launch(
      kernel,
      launch.grid,
      launch.threads,
      launch.sharedBytes ?? 0,
      bytes,
      this.stream,
      {
        isSingle: isBoxes(launch.arguments[0]),
        isEarly: launch.startsEarly && this.startsEarly,
      },
    );
  }

  product(product: Product): void {
    this.check();
    this.products.run(product);
  }

  clear(tensor: Tensor): void {
    this.check();
    const memory = memoryOf(tensor.storage);
    const { bytes } = memory;
    if (bytes > 0) this.driver.clear(this.use(memory), bytes, this.stream);
  }

  scratch(elements: number, dtype: DType): Tensor {
    const storage = this.allocate(elements, dtype);
    const allocation: Allocation = { backend: this, storage, freed: false };
    return new Tensor(allocation, [elements], dtype);
  }

  private readonly encode = ({ tensor, extents, box }: Boxes): Uint8Array =>
    this.driver.boxes(this.addressOf(tensor), extents, box);

  private readonly addressOf = (tensor: Tensor): CudaPointer =>
    this.use(memoryOf(tensor.storage));

  /** The address, for work that is enqueued now. */
  private use(memory: Memory): CudaPointer {
    this.recorded?.use(memory);
    return memory.pointer;
  }

  /** Where copies from the host go: never into a recording. */
  private get hostStream(): CudaStream {
    return this.recorded?.hostStream ?? this.stream;
  }

  private poison(memory: Memory): void {
    const words = Math.ceil(memory.bytes / 4);
    if (words === 0) return;
    // NaN in f32 and twice in 16 bits; in i32 a number that no index has.
    const word = memory.dtype === 'i32' ? 0x80000000 : 0x7fff7fff;
    this.driver.fillWords(memory.pointer, word, words, this.hostStream);
  }

  private copyFrom(from: CudaBackend, source: Storage, target: Storage): void {
    const [theirs, own] = [memoryOf(source), memoryOf(target)];
    checkCopy(theirs, 0, own, 0, Math.max(theirs.elements, own.elements));
    this.checkReceives(from);
    const { bytes, pointer } = own;
    if (bytes === 0) return;
    const { driver, stream } = this;
    driver.copyFromPeer(pointer, theirs.pointer, from.driver, bytes, stream);
  }

  private checkReceives(from: CudaBackend): void {
    for (const backend of [from, this]) {
      backend.check();
      backend.checkNotRecording('receive');
    }
  }

  /** Copies need not pass through the host, where the two devices allow it. */
  private reach(other: CudaBackend): void {
    if (this.reached.has(other)) return;
    const [own, theirs] = [this.parts.device, other.parts.device];
    this.driver.reach(other.driver, own, theirs);
    other.driver.reach(this.driver, theirs, own);
    this.reached.add(other);
    other.reached.add(this);
  }

  /** What this stream is given from now on runs behind the other's work so far. */
  private waitFor(other: CudaBackend): void {
    other.driver.record(other.event, other.stream);
    this.driver.makeWait(this.stream, other.event);
  }

  private check(): void {
    this.checkOpen();
    this.driver.checkAlive();
    this.driver.makeCurrent();
  }

  private checkOpen(): void {
    if (this.destroyed) {
      throw new TensorStateError('cuda: the backend was destroyed');
    }
  }

  private checkNotRecording(operation: string): void {
    if (this.recorded) {
      throw new TensorStateError(
        `${operation}: must not happen while work is recorded`,
      );
    }
  }
}

const arrayTypes = {
  f64: Float64Array,
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
} as const;

function checkArray(data: HostArray, dtype: DType): void {
  const type = arrayTypes[dtype];
  if (!(data instanceof type)) {
    throw new DTypeError(
      `write: data of ${dtype} must be a ${type.name}, got ${data.constructor.name}`,
    );
  }
}
