/// <reference types="@webgpu/types" />
import {
  type Allocation,
  ArgumentError,
  AsaError,
  type Backend,
  bytesPerElement,
  CompileError,
  DeviceLostError,
  type DType,
  DTypeError,
  type HostArray,
  type KernelTable,
  type MemoryStatistics,
  type OperatorName,
  OutOfMemoryError,
  type Recording,
  type Storage,
  Tensor,
  type TensorSpec,
  TensorStateError,
} from '@asa/core';
import { checkCopy, checkRange } from '../ranges';
import { BufferPool, type PooledBuffer } from './buffers';
import { Commands } from './commands';
import {
  createKernels,
  type KernelContext,
  type KernelLimits,
  reasonAgainst,
} from './kernels';
import { flat, input, type Launch, output, u32 } from './launch';
import type { MatrixUnit } from './matrix-unit';
import { Memory, memoryOf } from './memory';
import { Pipelines } from './pipelines';
import { Recorded } from './recorded';

export interface WebGpuBackendOptions {
  readonly limitBytes: number;
  readonly poison: boolean;
  readonly matrixUnit?: MatrixUnit;
  readonly attentionUnit?: MatrixUnit;
  readonly smallTiles?: boolean;
}

/** Operators as WGSL kernels on one device. */
export class WebGpuBackend implements Backend, KernelContext {
  readonly name = 'webgpu';
  /** Enough rows to fill the device. */
  readonly chunk = 2048;
  readonly kernels: KernelTable;

  /** The device's own answers, asked for once: each costs a call into it. */
  private readonly limits: KernelLimits & { readonly bindingBytes: number };
  private readonly pool: BufferPool;
  private readonly pipelines: Pipelines;
  private readonly commands: Commands;
  private readonly live = new Set<Memory>();
  private readonly checks = new Set<Promise<void>>();
  private readonly staging: GPUBuffer[] = [];
  private bytesInUse = 0;
  private peakBytes = 0;
  private allocations = 0;
  private recorded: Recorded | undefined;
  private failure: Error | undefined;
  private destroyed = false;

  constructor(
    readonly device: GPUDevice,
    readonly description: string,
    private readonly options: WebGpuBackendOptions,
  ) {
    const { limits, features } = device;
    this.limits = {
      bindings: limits.maxStorageBuffersPerShaderStage,
      bindingBytes: limits.maxStorageBufferBindingSize,
      workgroupBytes: limits.maxComputeWorkgroupStorageSize,
      halves: features.has('shader-f16'),
    };
    this.pipelines = new Pipelines(device, (problem) => this.watch(problem));
    this.pool = new BufferPool(
      device,
      options.limitBytes,
      () => this.pipelines.forgetBindGroups(),
      (problem) => this.watch(problem),
    );
    this.commands = new Commands(device, this.pipelines);
    this.commands.onSubmit = () => this.endScopes();
    this.kernels = createKernels(this);
    this.beginScopes();
    void device.lost.then(({ reason, message }) => {
      if (this.destroyed) return;
      this.failure = new DeviceLostError(
        `webgpu: the device was lost (${reason ?? 'unknown'}), ${message}; open the backend again`,
      );
    });
  }

  get features(): ReadonlySet<string> {
    return this.device.features;
  }

  get matrixUnit(): MatrixUnit | undefined {
    return this.options.matrixUnit;
  }

  get attentionUnit(): MatrixUnit | undefined {
    return this.options.attentionUnit;
  }

  get smallTiles(): boolean {
    return this.options.smallTiles ?? false;
  }

  /** What multiplies f16: the subgroups' matrix units, or plain kernels. */
  get matrixPath(): 'subgroup' | 'plain' {
    return this.matrixUnit ? 'subgroup' : 'plain';
  }

  /** The same for attention, or plain code in the units' place. */
  get attentionPath(): 'subgroup' | 'plain' | 'emulated' {
    const { attentionUnit } = this;
    if (!attentionUnit) return 'plain';
    return attentionUnit.isEmulated ? 'emulated' : 'subgroup';
  }

  /** Device buffers made since it was opened: a warm step makes none. */
  get buffersCreated(): number {
    return this.pool.created;
  }

  supports(
    operator: OperatorName,
    inputs: Readonly<Record<string, TensorSpec | undefined>>,
    attributes: unknown,
  ): true | string {
    this.checkOpen();
    if (this.kernels[operator] === undefined) return 'it has no kernel for it';
    for (const name in inputs) {
      const spec = inputs[name];
      const reason = spec && this.reasonAgainstTensor(name, spec);
      if (reason) return reason;
    }
    return reasonAgainst(operator, inputs, attributes, this.limits);
  }

  allocate(elements: number, dtype: DType): Storage {
    this.check();
    const bytes = elements * bytesPerElement[dtype];
    const buffer = this.pool.take(bytes, this.bytesInUse);
    const memory = new Memory(buffer, elements, dtype);
    this.live.add(memory);
    this.bytesInUse += bytes;
    this.peakBytes = Math.max(this.peakBytes, this.bytesInUse);
    this.allocations += 1;
    if (this.options.poison) this.poison(memory);
    return memory as Storage;
  }

  write(storage: Storage, data: HostArray, offset = 0): void {
    this.check();
    const memory = memoryOf(storage);
    checkArray(data, memory.dtype);
    checkRange('write', memory, offset, data.length);
    if (data.length === 0) return;
    const isWhole = offset === 0 && data.length === memory.elements;
    // Writing overtakes commands that wait: a buffer that they use is left to
    // them where all of it is replaced.
    if (memory.buffer.batch === this.commands.batch) {
      if (isWhole) this.pool.give(memory.exchange(this.unused(memory)));
      else this.commands.flush();
    }
    const size = bytesPerElement[memory.dtype];
    if ((offset * size) % 4 !== 0 || (!isWhole && (data.length * size) % 4)) {
      this.writeUnaligned(memory, data, offset);
      return;
    }
    const bytes = padded(data);
    const { queue } = this.device;
    queue.writeBuffer(memory.buffer.gpu, offset * size, bytes);
  }

  async read(storage: Storage): Promise<HostArray> {
    this.check();
    const memory = memoryOf(storage);
    const { paddedBytes, dtype, elements } = memory;
    const target = this.takeStaging(paddedBytes);
    this.touch(memory);
    this.commands.copy({
      source: memory.buffer.gpu,
      sourceOffset: 0,
      target,
      targetOffset: 0,
      bytes: paddedBytes,
    });
    this.commands.flush();
    try {
      await target.mapAsync(GPUMapMode.READ, 0, paddedBytes);
    } catch (error) {
      await this.settle();
      throw asInternal(error);
    }
    const data = target.getMappedRange(0, paddedBytes).slice(0);
    target.unmap();
    this.staging.push(target);
    await this.settle();
    return new arrayTypes[dtype as keyof typeof arrayTypes](data, 0, elements);
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
    const edges = [sourceOffset, targetOffset, length].map((n) => n * size);
    const isWhole =
      sourceOffset === 0 && targetOffset === 0 && length === to.elements;
    if (from === to || (!isWhole && edges.some((edge) => edge % 4 !== 0))) {
      this.copyElements(from, sourceOffset, to, targetOffset, length);
      return;
    }
    this.touch(from);
    this.touch(to);
    const [from0 = 0, to0 = 0, bytes = 0] = edges;
    this.commands.copy({
      source: from.buffer.gpu,
      sourceOffset: from0,
      target: to.buffer.gpu,
      targetOffset: to0,
      bytes: Math.ceil(bytes / 4) * 4,
    });
  }

  /** Harmless after `destroy`, so that owners can clean up in any order. */
  free(storage: Storage): void {
    const memory = memoryOf(storage);
    if (!this.live.delete(memory)) return;
    this.bytesInUse -= memory.bytes;
    this.pool.give(memory.release());
  }

  record(body: () => void): Recording {
    this.check();
    if (this.recorded) {
      throw new ArgumentError('webgpu: it records already, end that first');
    }
    this.commands.flush();
    const recorded = new Recorded(this.pool, this.commands, () => this.check());
    this.recorded = recorded;
    try {
      body();
    } catch (error) {
      recorded.end(() => false);
      recorded.free();
      throw error;
    } finally {
      this.recorded = undefined;
    }
    recorded.end((memory) => this.live.has(memory));
    this.commands.flush();
    return recorded;
  }

  flush(): void {
    this.check();
    this.commands.flush();
  }

  async synchronize(): Promise<void> {
    this.check();
    this.commands.flush();
    await this.device.queue.onSubmittedWorkDone();
    await this.settle();
    this.check();
  }

  memory(): MemoryStatistics {
    this.checkOpen();
    const { bytesInUse, peakBytes, allocations } = this;
    return { bytesInUse, peakBytes, allocations };
  }

  async destroy(): Promise<void> {
    if (this.destroyed) return;
    this.destroyed = true;
    for (const memory of this.live) this.free(memory as Storage);
    for (const buffer of this.staging) buffer.destroy();
    this.pipelines.destroy();
    this.pool.destroyAll();
    this.device.destroy();
    await Promise.allSettled(this.checks);
  }

  run(launch: Launch): void {
    this.check();
    const { bindings } = launch;
    for (const name in bindings) {
      const tensor = bindings[name]?.tensor;
      if (tensor) this.touch(memoryOf(tensor.storage));
    }
    this.commands.dispatch(launch);
  }

  clear(tensor: Tensor): void {
    const memory = memoryOf(tensor.storage);
    this.touch(memory);
    this.commands.clear(memory.buffer.gpu, memory.paddedBytes);
  }

  scratch(elements: number, dtype: DType): Tensor {
    const storage = this.allocate(elements, dtype);
    const allocation: Allocation = { backend: this, storage, freed: false };
    return new Tensor(allocation, [elements], dtype);
  }

  private touch(memory: Memory): void {
    this.recorded?.use(memory);
    memory.buffer.batch = this.commands.batch;
  }

  private reasonAgainstTensor(
    name: string,
    { dtype, shape }: TensorSpec,
  ): string | undefined {
    if (dtype === 'f64' || dtype === 'bf16') {
      return `WebGPU has no ${dtype}, and ${name} is ${dtype}`;
    }
    if (dtype === 'f16' && !this.limits.halves) {
      return `the device lacks shader-f16, and ${name} is f16`;
    }
    const bytes = bytesPerElement[dtype] * shape.reduce((n, d) => n * d, 1);
    const most = this.limits.bindingBytes;
    return bytes > most
      ? `${name} has ${bytes} bytes, and the device binds at most ${most}`
      : undefined;
  }

  /** A buffer that no waiting command uses. */
  private unused(memory: Memory): PooledBuffer {
    const passed: PooledBuffer[] = [];
    let buffer = this.pool.take(memory.bytes, this.bytesInUse);
    while (buffer.batch === this.commands.batch) {
      passed.push(buffer);
      buffer = this.pool.take(memory.bytes, this.bytesInUse);
    }
    for (const other of passed) this.pool.give(other);
    return buffer;
  }

  private writeUnaligned(
    memory: Memory,
    data: HostArray,
    offset: number,
  ): void {
    const temporary = this.allocate(data.length, memory.dtype);
    this.write(temporary, data);
    this.copyElements(memoryOf(temporary), 0, memory, offset, data.length);
    this.free(temporary);
  }

  /** 16-bit elements that do not lie on whole words, one by one. */
  private copyElements(
    from: Memory,
    sourceOffset: number,
    to: Memory,
    targetOffset: number,
    length: number,
  ): void {
    if (from === to) {
      const temporary = this.allocate(length, from.dtype);
      const middle = memoryOf(temporary);
      this.copyElements(from, sourceOffset, middle, 0, length);
      this.copyElements(middle, 0, to, targetOffset, length);
      this.free(temporary);
      return;
    }
    const tensor = (memory: Memory) =>
      new Tensor(
        { backend: this, storage: memory as Storage, freed: false },
        [memory.elements],
        memory.dtype,
      );
    this.run({
      kernel: 'copy',
      constants: {},
      bindings: { x: input(tensor(from)), y: output(tensor(to)) },
      uniforms: {
        count: u32(length),
        xStart: u32(sourceOffset),
        yStart: u32(targetOffset),
      },
      grid: flat(Math.ceil(length / 256)),
      source: () => ({
        threads: 256,
        body: `let i = (group.x + group.y * groups.x) * 256u + tid;
        if (i < u.count) { y[u.yStart + i] = x[u.xStart + i]; }`,
      }),
    });
  }

  private poison(memory: Memory): void {
    const words = new Uint32Array(memory.paddedBytes / 4);
    // NaN in f32 and in f16; in i32 a number that no index has.
    words.fill(memory.dtype === 'i32' ? 0x80000000 : 0x7fff7fff);
    if (memory.buffer.batch === this.commands.batch) this.commands.flush();
    this.device.queue.writeBuffer(memory.buffer.gpu, 0, words);
  }

  private takeStaging(bytes: number): GPUBuffer {
    const index = this.staging.findIndex(({ size }) => size >= bytes);
    const [found] = index < 0 ? [] : this.staging.splice(index, 1);
    if (found) return found;
    for (const small of this.staging.splice(0)) small.destroy();
    return this.device.createBuffer({
      size: Math.max(256, bytes),
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
  }

  // One pair of error scopes about each batch: nothing passes unseen, and no
  // command pays for a scope of its own.
  private beginScopes(): void {
    this.device.pushErrorScope('out-of-memory');
    this.device.pushErrorScope('internal');
    this.device.pushErrorScope('validation');
  }

  private endScopes(): void {
    const scopes = [1, 2, 3].map(() => this.device.popErrorScope());
    this.beginScopes();
    const inUse = this.bytesInUse;
    this.watch(
      Promise.all(scopes).then(([validation, internal, memory]) => {
        if (memory) return new OutOfMemoryError(0, inUse, memory.message);
        const error = validation ?? internal;
        return error
          ? new AsaError(`internal: webgpu: ${error.message}`)
          : undefined;
      }),
    );
  }

  /**
   * Keeps the first failure, for the next call to throw; what did not compile
   * comes before the failures that follow from it.
   */
  private watch(problem: Promise<Error | undefined>): void {
    const check: Promise<void> = problem.then(
      (error) => {
        const isCause =
          error instanceof CompileError &&
          !(this.failure instanceof DeviceLostError);
        if (isCause) this.failure = error;
        else this.failure ??= error;
        this.checks.delete(check);
      },
      () => {
        this.checks.delete(check);
      },
    );
    this.checks.add(check);
  }

  private async settle(): Promise<void> {
    while (this.checks.size > 0) await Promise.all(this.checks);
    this.throwFailure();
  }

  /** A lost device fails every call, any other failure the next one. */
  private throwFailure(): void {
    const { failure } = this;
    if (!failure) return;
    if (!(failure instanceof DeviceLostError)) this.failure = undefined;
    throw failure;
  }

  private check(): void {
    this.checkOpen();
    this.throwFailure();
  }

  private checkOpen(): void {
    if (this.destroyed) {
      throw new TensorStateError('webgpu: the backend was destroyed');
    }
  }
}

const arrayTypes = {
  f32: Float32Array,
  f16: Uint16Array,
  i32: Int32Array,
} as const;

function checkArray(data: HostArray, dtype: DType): void {
  const type = arrayTypes[dtype as keyof typeof arrayTypes];
  if (!(data instanceof type)) {
    throw new DTypeError(
      `write: data of ${dtype} must be a ${type.name}, got ${data.constructor.name}`,
    );
  }
}

/** The bytes of an array, with zeros up to a multiple of 4. */
function padded(data: HostArray): Uint8Array<ArrayBuffer> {
  const { buffer, byteOffset, byteLength } = data;
  const bytes = new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
  if (byteLength % 4 === 0) return bytes;
  const copy = new Uint8Array(byteLength + 4 - (byteLength % 4));
  copy.set(bytes);
  return copy;
}

function asInternal(error: unknown): Error {
  const message = error instanceof Error ? error.message : String(error);
  return new AsaError(`internal: webgpu: ${message}`);
}
