/**
 * A libcuda whose device is the host: memory and copies are real, kernels are
 * only noted, streams run at once unless they are captured.
 */
import {
  bind,
  bytesAt,
  type CompilerLibrary,
  type DriverLibrary,
  type HostPointer,
  NativeMemory,
  type ProductLibrary,
} from '../../../../packages/backend-gpu/src/cuda/bindings';
import { Compiler } from '../../../../packages/backend-gpu/src/cuda/compiler';
import { CudaBackend } from '../../../../packages/backend-gpu/src/cuda/cuda-backend';
import { Driver } from '../../../../packages/backend-gpu/src/cuda/driver';
import { KernelCache } from '../../../../packages/backend-gpu/src/cuda/kernel-cache';

const libc = bind('libc.so.6', {
  memmove: ['uint64', 'uint64', 'uint64'],
  memset: ['uint64', 'int', 'uint64'],
});

type Work = () => void;

/** Memory of a device that only counts starts here. */
const FIRST_ADDRESS = 2 ** 40;
const INVALID_VALUE = 1;

export class FakeCuda {
  /** Live memory, on the device and pinned. */
  readonly memory = new Map<number, NativeMemory>();
  readonly handles = new Set<number>();
  /** Names of the kernels that ran, in order. */
  readonly ran: string[] = [];
  /** Bytes that the device has. */
  capacity = 2 ** 30;
  /** What the next event query answers, instead of success. */
  eventStatus = 0;

  /** Of these, those that were to start early. */
  readonly early: string[] = [];
  /** As `cuDriverGetVersion` has it. */
  version = 12_030;

  /** What a launch was that a card refuses. */
  refused: string | undefined;

  private nextHandle = 100;
  private nextAddress = FIRST_ADDRESS;
  private emptyBytes = 0;
  private readonly sizes = new Map<number, number>();
  private readonly allowedShared = new Map<number, number>();
  private readonly names = new Map<number, string>();
  private readonly graphs = new Map<number, readonly Work[]>();
  private captured: { stream: number; work: Work[] } | undefined;

  /**
   * @param isEmpty device memory is counted, and holds nothing: for work of any
   *   size, of which only the launches matter.
   */
  constructor(private readonly isEmpty = false) {}

  readonly library: DriverLibrary = new Proxy(
    this.functions() as DriverLibrary,
    {
      get: (target, name) => target[name as keyof DriverLibrary] ?? (() => 0),
    },
  );

  /** A backend on it, without the check of a known answer: nothing computes. */
  open(
    options: {
      readonly limitBytes?: number;
      readonly poison?: boolean;
      readonly capability?: number;
    } = {},
  ): CudaBackend {
    const compiler: Partial<CompilerLibrary> = {
      nvrtcVersion: () => 0,
      nvrtcCreateProgram: () => 0,
      nvrtcCompileProgram: () => 0,
      nvrtcGetCUBINSize: (_, out) => set(out, 4),
      nvrtcGetCUBIN: () => 0,
      nvrtcDestroyProgram: () => 0,
    };
    const products: Partial<ProductLibrary> = {
      // It finds one.
      cublasLtMatmulAlgoGetHeuristic: (...values) => set(values[9], 1),
    };
    return new CudaBackend({
      driver: new Driver(this.library),
      compiler: new Compiler(compiler as CompilerLibrary),
      products: new Proxy(products as ProductLibrary, {
        get: (target, name) =>
          target[name as keyof ProductLibrary] ?? (() => 0),
      }),
      cache: new KernelCache(undefined),
      device: 0,
      facts: {
        name: 'Host',
        capability: options.capability ?? 90,
        multiprocessors: this.isEmpty ? 132 : 1,
        l2Bytes: 50 * 2 ** 20,
        sharedBytes: 232_448,
        totalBytes: this.capacity,
      },
      limitBytes: options.limitBytes ?? Number.POSITIVE_INFINITY,
      poison: options.poison ?? false,
      allowTf32: false,
    });
  }

  private get bytes(): number {
    let bytes = this.emptyBytes;
    for (const { bytes: memory } of this.memory.values()) {
      bytes += memory.length;
    }
    return bytes;
  }

  private functions(): Partial<DriverLibrary> {
    const create = (out: ArrayBufferView | null) => set(out, this.handle());
    const destroy = (handle: number) => {
      if (!this.handles.delete(handle)) return 400;
      return 0;
    };
    const copy = (to: number, from: number, bytes: number, stream: number) =>
      this.enqueue(stream, () => {
        if (!this.isEmpty) libc.memmove(to, from, bytes);
      });
    return {
      cuDriverGetVersion: (out) => set(out, this.version),
      cuMemAlloc_v2: (out, bytes) =>
        this.isEmpty ? this.count(out, bytes) : this.allocate(out, bytes),
      cuMemHostAlloc: (out, bytes) => this.allocate(out, bytes),
      cuMemFree_v2: (pointer) => this.free(pointer),
      cuMemFreeHost: (pointer) => this.free(pointer),
      cuMemcpyHtoDAsync_v2: copy,
      cuMemcpyDtoHAsync_v2: copy,
      cuMemcpyDtoDAsync_v2: copy,
      cuMemsetD8Async: (to, byte, bytes, stream) =>
        this.enqueue(stream, () => {
          if (!this.isEmpty) libc.memset(to, byte, bytes);
        }),
      cuMemsetD32Async: (to, word, count, stream) =>
        this.enqueue(stream, () => {
          const memory = this.memory.get(to)?.bytes;
          new Uint32Array(memory?.buffer ?? new ArrayBuffer(0)).fill(
            word,
            0,
            count,
          );
        }),
      cuDevicePrimaryCtxRetain: create,
      cuStreamCreate: create,
      cuStreamDestroy_v2: destroy,
      cuEventCreate: create,
      cuEventDestroy_v2: destroy,
      cuEventQuery: () => this.eventStatus,
      cuModuleLoadData: create,
      cuModuleUnload: destroy,
      cuModuleGetFunction: (out, _module, name) => {
        const handle = this.handle();
        this.names.set(handle, name ?? '');
        return set(out, handle);
      },
      cuFuncSetAttribute: (kernel, _attribute, bytes) => {
        this.allowedShared.set(kernel, bytes);
        return 0;
      },
      cuLaunchKernel: (kernel, ...values) =>
        this.launch(kernel, values.slice(0, 7), values[7]),
      cuLaunchKernelEx: (config, kernel) => {
        const bytes = bytesAt(config as HostPointer, 40);
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        const numbers = [0, 4, 8, 12, 16, 20, 24].map((at) =>
          view.getUint32(at, true),
        );
        const stream = Number(view.getBigUint64(32, true));
        this.early.push(this.names.get(kernel) ?? '');
        return this.launch(kernel, numbers, stream);
      },
      cuStreamBeginCapture_v2: (stream) => {
        this.captured = { stream, work: [] };
        return 0;
      },
      cuStreamEndCapture: (_stream, out) => {
        const graph = this.handle();
        this.graphs.set(graph, this.captured?.work ?? []);
        this.captured = undefined;
        return set(out, graph);
      },
      cuGraphInstantiateWithFlags: (out, graph) => {
        const instance = this.handle();
        this.graphs.set(instance, this.graphs.get(graph) ?? []);
        return set(out, instance);
      },
      cuGraphDestroy: destroy,
      cuGraphExecDestroy: destroy,
      cuGraphLaunch: (graph) => {
        for (const work of this.graphs.get(graph) ?? []) work();
        return 0;
      },
    };
  }

  /** @param numbers blocks and threads on three axes; bytes of shared memory. */
  private launch(
    kernel: number,
    numbers: readonly number[],
    stream: number,
  ): number {
    const name = this.names.get(kernel) ?? '';
    if (!isLaunch(numbers, this.allowedShared.get(kernel) ?? 0)) {
      this.refused = `${name} ${numbers.join(' ')}`;
      return INVALID_VALUE;
    }
    return this.enqueue(stream, () => {
      this.ran.push(name);
    });
  }

  private enqueue(stream: number, work: Work): number {
    if (this.captured?.stream === stream) this.captured.work.push(work);
    else work();
    return 0;
  }

  private allocate(out: ArrayBufferView | null, bytes: number): number {
    if (this.bytes + bytes > this.capacity) return 2;
    const memory = new NativeMemory(bytes);
    this.memory.set(memory.address, memory);
    return set(out, memory.address);
  }

  private count(out: ArrayBufferView | null, bytes: number): number {
    if (this.bytes + bytes > this.capacity) return 2;
    const address = this.nextAddress;
    this.nextAddress += 256 * Math.ceil(bytes / 256);
    this.sizes.set(address, bytes);
    this.emptyBytes += bytes;
    return set(out, address);
  }

  private free(pointer: number): number {
    const bytes = this.sizes.get(pointer);
    if (bytes !== undefined) {
      this.sizes.delete(pointer);
      this.emptyBytes -= bytes;
      return 0;
    }
    const memory = this.memory.get(pointer);
    if (!memory) return 1;
    memory.free();
    this.memory.delete(pointer);
    return 0;
  }

  private handle(): number {
    this.handles.add(this.nextHandle);
    return this.nextHandle++;
  }
}

function set(out: ArrayBufferView | null, value: number): number {
  (out as BigUint64Array)[0] = BigInt(value);
  return 0;
}

/** Whether a card takes a launch: its grid, its threads, its shared memory. */
function isLaunch(
  [x = 0, y = 0, z = 0, tx = 0, ty = 0, tz = 0, shared = 0]: readonly number[],
  allowedShared: number,
): boolean {
  const isGrid = x < 2 ** 31 && y <= 65_535 && z <= 65_535;
  const isBlock = tx * ty * tz <= 1024 && tz <= 64;
  const isNone = x * y * z * tx * ty * tz === 0;
  return isGrid && isBlock && !isNone && shared <= allowedShared;
}
