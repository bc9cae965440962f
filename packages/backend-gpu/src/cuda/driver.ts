import { AsaError, DeviceLostError } from '@asa/core';
import {
  type CudaContext,
  type CudaEvent,
  type CudaFunction,
  type CudaGraphExec,
  type CudaModule,
  type CudaPointer,
  type CudaStream,
  type DriverLibrary,
  type HostPointer,
  NativeMemory,
  Out,
  textAt,
} from './bindings';
import { BOXES_BYTES } from './launch';

/** Statuses that are answers, not failures. */
const OUT_OF_MEMORY = 2;
const NOT_READY = 600;
const PEER_ACCESS_ALREADY_ENABLED = 704;

/** Failures after which a context is of no use; every later call fails too. */
const lostStatuses: ReadonlySet<number> = new Set([
  46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720,
  721, 999,
]);

const attributes = {
  multiprocessors: 16,
  l2Bytes: 38,
  major: 75,
  minor: 76,
  sharedBytes: 97,
} as const;
const MAX_DYNAMIC_SHARED_BYTES = 8;

/** Captures leave other calls alone: memory may be made meanwhile. */
const CAPTURE_RELAXED = 2;
const NON_BLOCKING = 1;
const NO_TIMING = 2;

/** Bytes of packed kernel arguments that every device takes. */
const ARGUMENT_BYTES = 4096;

/** A `CUlaunchConfig` and, behind it, its one `CUlaunchAttribute`. */
const CONFIG_BYTES = 56;
const ATTRIBUTE_BYTES = 72;
const PROGRAMMATIC_STREAM_SERIALIZATION = 6;

/** Of `CUtensorMapDataType` and the enumerations behind it. */
const UINT16 = 1;
const SWIZZLE_128B = 3;
const L2_256B = 3;
/** Every element on each axis. */
const STEPS = Uint32Array.of(1, 1, 1);

/** What a device says of itself. */
export interface DeviceFacts {
  readonly name: string;
  /** Compute capability, as in `sm_90`. */
  readonly capability: number;
  readonly multiprocessors: number;
  readonly l2Bytes: number;
  /** Shared memory that one block may ask for. */
  readonly sharedBytes: number;
  readonly totalBytes: number;
}

/** The driver whose context this thread's calls go to. */
let current: Driver | undefined;

/**
 * libcuda for one device with every status checked. Each call finds the
 * device's context current, whichever device was used before it.
 */
export class Driver {
  private readonly out = new Out();
  /** The failure that ended the context; every call throws it again. */
  private lost: DeviceLostError | undefined;
  /** The device's, once it is retained. */
  private context: CudaContext | undefined;
  /** Packed arguments of a launch, and how `cuLaunchKernel` is told of them. */
  private readonly packed = new NativeMemory(ARGUMENT_BYTES + 56);
  readonly argumentBytes = this.packed.bytes.subarray(0, ARGUMENT_BYTES);
  private readonly argumentSize: BigUint64Array;
  private readonly extra: number;
  private readonly single: number;
  /** A launch that starts early, as `cuLaunchKernelEx` is told of it. */
  private readonly config = new NativeMemory(CONFIG_BYTES + ATTRIBUTE_BYTES);
  private readonly configView: DataView;
  /** Where boxes are encoded, on a multiple of 64 bytes. */
  private readonly maps = new NativeMemory(BOXES_BYTES + 63);
  private readonly mapAddress = Math.ceil(this.maps.address / 64) * 64;
  private readonly mapBytes = this.maps.bytes.subarray(
    this.mapAddress - this.maps.address,
    this.mapAddress - this.maps.address + BOXES_BYTES,
  );

  constructor(private readonly library: DriverLibrary) {
    const { address, bytes } = this.packed;
    // BUFFER_POINTER (1), the buffer, BUFFER_SIZE (2), where the size is, END.
    const tail = new BigUint64Array(
      bytes.buffer,
      bytes.byteOffset + ARGUMENT_BYTES,
      7,
    );
    const sizeAt = address + ARGUMENT_BYTES + 40;
    // Behind them: where the one parameter is.
    const start = BigInt(address);
    tail.set([1n, start, 2n, BigInt(sizeAt), 0n, 0n, start]);
    this.argumentSize = tail.subarray(5);
    this.extra = address + ARGUMENT_BYTES;
    this.single = sizeAt + 8;
    this.configView = earlyLaunch(this.config);
  }

  init(): void {
    this.check('cuInit', this.cuda.cuInit(0));
  }

  /** The newest CUDA that the driver knows: 12030 is 12.3. */
  version(): number {
    const { library, out } = this;
    const status = library.cuDriverGetVersion(out.memory);
    this.check('cuDriverGetVersion', status);
    return out.takeInt();
  }

  deviceCount(): number {
    const { out } = this;
    this.check('cuDeviceGetCount', this.cuda.cuDeviceGetCount(out.memory));
    return out.takeInt();
  }

  facts(index: number): DeviceFacts {
    const { cuda, out } = this;
    const device = this.handleOf(index);
    const name = new Uint8Array(256);
    this.check('cuDeviceGetName', cuda.cuDeviceGetName(name, 256, device));
    this.check(
      'cuDeviceTotalMem',
      cuda.cuDeviceTotalMem_v2(out.memory, device),
    );
    const totalBytes = out.take();
    const ask = (attribute: number) => {
      const status = cuda.cuDeviceGetAttribute(out.memory, attribute, device);
      this.check('cuDeviceGetAttribute', status);
      return out.takeInt();
    };
    return {
      name: new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
      capability: 10 * ask(attributes.major) + ask(attributes.minor),
      multiprocessors: ask(attributes.multiprocessors),
      l2Bytes: ask(attributes.l2Bytes),
      sharedBytes: ask(attributes.sharedBytes),
      totalBytes,
    };
  }

  /**
   * Takes the device's primary context, which cuBLASLt uses too. Drivers of one
   * device share it.
   */
  retainContext(index: number): void {
    const { library, out } = this;
    const device = this.handleOf(index);
    const status = library.cuDevicePrimaryCtxRetain(out.memory, device);
    this.check('cuDevicePrimaryCtxRetain', status);
    this.context = out.take<CudaContext>();
  }

  releaseContext(index: number): void {
    this.packed.free();
    this.maps.free();
    this.config.free();
    const device = this.handleOf(index);
    this.context = undefined;
    current = undefined;
    this.library.cuDevicePrimaryCtxRelease_v2(device);
  }

  /** For libraries that go by the thread's context, as cuBLASLt does. */
  makeCurrent(): void {
    if (current === this || this.context === undefined) return;
    const status = this.library.cuCtxSetCurrent(this.context);
    this.check('cuCtxSetCurrent', status);
    current = this;
  }

  /** Whether memory of the other's device can be copied to this one's. */
  knows(other: Driver): boolean {
    return this.library === other.library;
  }

  /**
   * Lets this device reach the other's memory by itself, where the two can. A
   * copy between devices that cannot goes through the host.
   */
  reach(other: Driver, device: number, otherDevice: number): void {
    const { cuda, out, context } = this;
    if (other.context === undefined || other.context === context) return;
    const [own, theirs] = [this.handleOf(device), this.handleOf(otherDevice)];
    const asked = cuda.cuDeviceCanAccessPeer(out.memory, own, theirs);
    this.check('cuDeviceCanAccessPeer', asked);
    if (out.takeInt() === 0) return;
    const status = cuda.cuCtxEnablePeerAccess(other.context, 0);
    if (status === PEER_ACCESS_ALREADY_ENABLED) return;
    this.check('cuCtxEnablePeerAccess', status);
  }

  /** Copies from the other's device to this one's. */
  copyFromPeer(
    target: CudaPointer,
    source: CudaPointer,
    other: Driver,
    bytes: number,
    stream: CudaStream,
  ): void {
    const { cuda, context = 0 } = this;
    if (other.context === context) {
      this.copyOnDevice(target, source, bytes, stream);
      return;
    }
    const from = other.context ?? 0;
    const status = cuda.cuMemcpyPeerAsync(
      target,
      context,
      source,
      from,
      bytes,
      stream,
    );
    this.check('cuMemcpyPeerAsync', status);
  }

  /** Device memory, or nothing where there is no room for it. */
  allocate(bytes: number): CudaPointer | undefined {
    const status = this.cuda.cuMemAlloc_v2(this.out.memory, bytes);
    if (status === OUT_OF_MEMORY) return undefined;
    this.check('cuMemAlloc', status);
    return this.out.take<CudaPointer>();
  }

  free(pointer: CudaPointer): void {
    this.check('cuMemFree', this.cuda.cuMemFree_v2(pointer));
  }

  /** Host memory that the device copies from and to by itself. */
  allocateHost(bytes: number): HostPointer {
    const status = this.cuda.cuMemHostAlloc(this.out.memory, bytes, 0);
    this.check('cuMemHostAlloc', status);
    return this.out.take();
  }

  freeHost(pointer: HostPointer): void {
    this.check('cuMemFreeHost', this.cuda.cuMemFreeHost(pointer));
  }

  copyToDevice(
    target: number,
    source: HostPointer,
    bytes: number,
    stream: CudaStream,
  ): void {
    const { cuda } = this;
    const status = cuda.cuMemcpyHtoDAsync_v2(target, source, bytes, stream);
    this.check('cuMemcpyHtoDAsync', status);
  }

  copyToHost(
    target: HostPointer,
    source: number,
    bytes: number,
    stream: CudaStream,
  ): void {
    const { cuda } = this;
    const status = cuda.cuMemcpyDtoHAsync_v2(target, source, bytes, stream);
    this.check('cuMemcpyDtoHAsync', status);
  }

  copyOnDevice(
    target: number,
    source: number,
    bytes: number,
    stream: CudaStream,
  ): void {
    const { cuda } = this;
    const status = cuda.cuMemcpyDtoDAsync_v2(target, source, bytes, stream);
    this.check('cuMemcpyDtoDAsync', status);
  }

  clear(pointer: CudaPointer, bytes: number, stream: CudaStream): void {
    const status = this.cuda.cuMemsetD8Async(pointer, 0, bytes, stream);
    this.check('cuMemsetD8Async', status);
  }

  fillWords(
    pointer: CudaPointer,
    word: number,
    count: number,
    stream: CudaStream,
  ): void {
    const status = this.cuda.cuMemsetD32Async(pointer, word, count, stream);
    this.check('cuMemsetD32Async', status);
  }

  createStream(): CudaStream {
    const status = this.cuda.cuStreamCreate(this.out.memory, NON_BLOCKING);
    this.check('cuStreamCreate', status);
    return this.out.take();
  }

  destroyStream(stream: CudaStream): void {
    this.check('cuStreamDestroy', this.cuda.cuStreamDestroy_v2(stream));
  }

  /** Blocks this thread. */
  synchronize(stream: CudaStream): void {
    this.check('cuStreamSynchronize', this.cuda.cuStreamSynchronize(stream));
  }

  createEvent(): CudaEvent {
    const status = this.cuda.cuEventCreate(this.out.memory, NO_TIMING);
    this.check('cuEventCreate', status);
    return this.out.take();
  }

  destroyEvent(event: CudaEvent): void {
    this.check('cuEventDestroy', this.cuda.cuEventDestroy_v2(event));
  }

  record(event: CudaEvent, stream: CudaStream): void {
    this.check('cuEventRecord', this.cuda.cuEventRecord(event, stream));
  }

  /** What the stream is given from now on runs behind the event. */
  makeWait(stream: CudaStream, event: CudaEvent): void {
    const status = this.cuda.cuStreamWaitEvent(stream, event, 0);
    this.check('cuStreamWaitEvent', status);
  }

  /** Whether the stream has passed the event. */
  isPassed(event: CudaEvent): boolean {
    const status = this.cuda.cuEventQuery(event);
    if (status === NOT_READY) return false;
    this.check('cuEventQuery', status);
    return true;
  }

  /** Blocks this thread. */
  waitFor(event: CudaEvent): void {
    this.check('cuEventSynchronize', this.cuda.cuEventSynchronize(event));
  }

  loadModule(cubin: Uint8Array): CudaModule {
    const status = this.cuda.cuModuleLoadData(this.out.memory, cubin);
    this.check('cuModuleLoadData', status);
    return this.out.take();
  }

  unloadModule(module: CudaModule): void {
    this.check('cuModuleUnload', this.cuda.cuModuleUnload(module));
  }

  functionOf(module: CudaModule, name: string): CudaFunction {
    const { cuda, out } = this;
    const status = cuda.cuModuleGetFunction(out.memory, module, name);
    this.check(`cuModuleGetFunction ${name}`, status);
    return out.take();
  }

  /** More than 48 KiB with a kernel's own tables must be asked for. */
  allowShared(kernel: CudaFunction, bytes: number): void {
    const { cuda } = this;
    const status = cuda.cuFuncSetAttribute(
      kernel,
      MAX_DYNAMIC_SHARED_BYTES,
      bytes,
    );
    this.check('cuFuncSetAttribute', status);
  }

  /**
   * A tensor `[rows, heads, columns]` of 16-bit elements as copies of boxes see
   * it, in 128-byte swizzle: 64 columns by `box`. Good until the next call.
   */
  boxes(
    address: CudaPointer,
    [rows, heads, columns]: readonly [number, number, number],
    [boxRows, boxHeads]: readonly [rows: number, heads: number],
  ): Uint8Array {
    const row = 2 * columns;
    const status = this.cuda.cuTensorMapEncodeTiled(
      this.mapAddress,
      UINT16,
      3,
      address,
      BigUint64Array.of(BigInt(columns), BigInt(heads), BigInt(rows)),
      BigUint64Array.of(BigInt(row), BigInt(row * heads)),
      Uint32Array.of(64, boxHeads, boxRows),
      STEPS,
      0,
      SWIZZLE_128B,
      L2_256B,
      0,
    );
    this.check('cuTensorMapEncodeTiled', status);
    return this.mapBytes;
  }

  /**
   * Launches a kernel with the first bytes of `argumentBytes`.
   * @param how whether they are one structure, its only parameter; whether it may
   *   start before the kernel before it has ended.
   */
  launch(
    kernel: CudaFunction,
    [x, y = 1, z = 1]: readonly [x: number, y?: number, z?: number],
    [tx, ty = 1]: readonly [x: number, y?: number],
    sharedBytes: number,
    argumentBytes: number,
    stream: CudaStream,
    how: { readonly isSingle?: boolean; readonly isEarly?: boolean } = {},
  ): void {
    const { cuda, config, configView } = this;
    this.argumentSize[0] = BigInt(argumentBytes);
    const single = how.isSingle ? this.single : 0;
    const extra = how.isSingle ? 0 : this.extra;
    if (how.isEarly) {
      const numbers = [x, y, z, tx, ty, 1, sharedBytes];
      for (const [at, number] of numbers.entries()) {
        configView.setUint32(4 * at, number, true);
      }
      configView.setBigUint64(32, BigInt(stream), true);
      const { address } = config;
      const status = cuda.cuLaunchKernelEx(address, kernel, single, extra);
      this.check('cuLaunchKernelEx', status);
      return;
    }
    const status = cuda.cuLaunchKernel(
      kernel,
      x,
      y,
      z,
      tx,
      ty,
      1,
      sharedBytes,
      stream,
      single,
      extra,
    );
    this.check('cuLaunchKernel', status);
  }

  beginCapture(stream: CudaStream): void {
    const status = this.cuda.cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED);
    this.check('cuStreamBeginCapture', status);
  }

  /**
   * Ends a capture; what was captured, ready to launch, or nothing where there is
   * no room for it.
   */
  endCapture(stream: CudaStream): CudaGraphExec | undefined {
    const { cuda, out } = this;
    const ended = cuda.cuStreamEndCapture(stream, out.memory);
    this.check('cuStreamEndCapture', ended);
    const graph = out.take();
    const status = cuda.cuGraphInstantiateWithFlags(out.memory, graph, 0);
    cuda.cuGraphDestroy(graph);
    if (status === OUT_OF_MEMORY) return undefined;
    this.check('cuGraphInstantiate', status);
    return out.take<CudaGraphExec>();
  }

  /** Ends a capture and drops what was captured. */
  abandonCapture(stream: CudaStream): void {
    if (this.cuda.cuStreamEndCapture(stream, this.out.memory) !== 0) return;
    this.cuda.cuGraphDestroy(this.out.take());
  }

  launchGraph(graph: CudaGraphExec, stream: CudaStream): void {
    this.check('cuGraphLaunch', this.cuda.cuGraphLaunch(graph, stream));
  }

  destroyGraph(graph: CudaGraphExec): void {
    this.check('cuGraphExecDestroy', this.cuda.cuGraphExecDestroy(graph));
  }

  /** Throws again what ended the context. */
  checkAlive(): void {
    if (this.lost) throw this.lost;
  }

  /** The functions, for calls to this driver's context. */
  private get cuda(): DriverLibrary {
    this.makeCurrent();
    return this.library;
  }

  private handleOf(device: number): number {
    const { library, out } = this;
    this.check('cuDeviceGet', library.cuDeviceGet(out.memory, device));
    return out.takeInt();
  }

  private check(call: string, status: number): void {
    if (status === 0) return;
    this.checkAlive();
    const words = this.words(status);
    if (lostStatuses.has(status)) {
      this.lost = new DeviceLostError(
        `cuda: the device was lost, ${call}: ${words}; open the backend again`,
      );
      throw this.lost;
    }
    throw new AsaError(`cuda: ${call}: ${words}`);
  }

  /** The driver's own name and sentence for a status. */
  private words(status: number): string {
    const { library: cuda } = this;
    const out = new Out();
    const name = cuda.cuGetErrorName(status, out.memory) === 0;
    const nameText = name ? textAt(out.take()) : `status ${status}`;
    const text = cuda.cuGetErrorString(status, out.memory) === 0;
    return text ? `${nameText}, ${textAt(out.take())}` : nameText;
  }
}

/** Writes what all launches that start early have in common. */
function earlyLaunch({ address, bytes }: NativeMemory): DataView {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  bytes.fill(0);
  // Where the attributes are, and how many.
  view.setBigUint64(40, BigInt(address + CONFIG_BYTES), true);
  view.setUint32(48, 1, true);
  view.setUint32(CONFIG_BYTES, PROGRAMMATIC_STREAM_SERIALIZATION, true);
  view.setUint32(CONFIG_BYTES + 8, 1, true);
  return view;
}
