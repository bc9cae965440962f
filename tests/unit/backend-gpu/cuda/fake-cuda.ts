/**
 * A libcuda whose device is the host: memory and copies are real, kernels are
 * only noted, streams run at once unless they are captured.
 */
import {
  bind,
  type CompilerLibrary,
  type DriverLibrary,
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

  private nextHandle = 100;
  private readonly names = new Map<number, string>();
  private readonly graphs = new Map<number, readonly Work[]>();
  private captured: { stream: number; work: Work[] } | undefined;

  readonly library: DriverLibrary = new Proxy(
    this.functions() as DriverLibrary,
    {
      get: (target, name) => target[name as keyof DriverLibrary] ?? (() => 0),
    },
  );

  /** A backend on it, without the check of a known answer: nothing computes. */
  open(
    options: { readonly limitBytes?: number; readonly poison?: boolean } = {},
  ): CudaBackend {
    const compiler: Partial<CompilerLibrary> = {
      nvrtcVersion: () => 0,
      nvrtcCreateProgram: () => 0,
      nvrtcCompileProgram: () => 0,
      nvrtcGetCUBINSize: (_, out) => set(out, 4),
      nvrtcGetCUBIN: () => 0,
      nvrtcDestroyProgram: () => 0,
    };
    return new CudaBackend({
      driver: new Driver(this.library),
      compiler: new Compiler(compiler as CompilerLibrary),
      products: new Proxy({} as ProductLibrary, { get: () => () => 0 }),
      cache: new KernelCache(undefined),
      device: 0,
      facts: {
        name: 'Host',
        capability: 90,
        multiprocessors: 1,
        l2Bytes: 0,
        sharedBytes: 232_448,
        totalBytes: this.capacity,
      },
      limitBytes: options.limitBytes ?? Number.POSITIVE_INFINITY,
      poison: options.poison ?? false,
      allowTf32: false,
    });
  }

  private get bytes(): number {
    let bytes = 0;
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
      this.enqueue(stream, () => libc.memmove(to, from, bytes));
    return {
      cuMemAlloc_v2: (out, bytes) => this.allocate(out, bytes),
      cuMemHostAlloc: (out, bytes) => this.allocate(out, bytes),
      cuMemFree_v2: (pointer) => this.free(pointer),
      cuMemFreeHost: (pointer) => this.free(pointer),
      cuMemcpyHtoDAsync_v2: copy,
      cuMemcpyDtoHAsync_v2: copy,
      cuMemcpyDtoDAsync_v2: copy,
      cuMemsetD8Async: (to, byte, bytes, stream) =>
        this.enqueue(stream, () => libc.memset(to, byte, bytes)),
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
      cuLaunchKernel: (...values) =>
        this.enqueue(values[8], () => {
          this.ran.push(this.names.get(values[0]) ?? '');
        }),
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

  private free(pointer: number): number {
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
