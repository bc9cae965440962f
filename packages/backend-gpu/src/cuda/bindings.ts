import koffi from 'koffi';

/**
 * The functions of CUDA's libraries that the driver calls, all in one place.
 * Handles and device addresses travel as 64-bit numbers with a brand, so that
 * no two kinds are mixed; host memory travels as an array or as its address.
 */
declare const brand: unique symbol;
type Branded<Name extends string> = number & { readonly [brand]: Name };

export type CudaPointer = Branded<'CUdeviceptr'>;
export type CudaContext = Branded<'CUcontext'>;
export type CudaStream = Branded<'CUstream'>;
export type CudaEvent = Branded<'CUevent'>;
export type CudaModule = Branded<'CUmodule'>;
export type CudaFunction = Branded<'CUfunction'>;
export type CudaGraphExec = Branded<'CUgraphExec'>;
export type HostPointer = Branded<'void *'>;
export type NvrtcProgram = Branded<'nvrtcProgram'>;
export type LtHandle = Branded<'cublasLtHandle_t'>;
export type LtDescriptor = Branded<'cublasLt descriptor'>;

/** What an argument is in C, and what it is here. */
interface Arguments {
  int: number;
  uint32: number;
  /** A size, a handle or an address. */
  uint64: number;
  /** Memory that outlives the call: the array's own, not a copy. */
  'void *': ArrayBufferView | null;
  'const char *': string | null;
}

type Signature = readonly (keyof Arguments)[];
type Values<Kinds extends Signature> = {
  -readonly [At in keyof Kinds]: Arguments[Kinds[At]];
};
type Bound<Table extends Readonly<Record<string, Signature>>> = {
  readonly [Name in keyof Table]: (...values: Values<Table[Name]>) => number;
};

/** libcuda. Each function returns a status. */
export const driverFunctions = {
  cuInit: ['uint32'],
  cuDriverGetVersion: ['void *'],
  cuGetErrorName: ['int', 'void *'],
  cuGetErrorString: ['int', 'void *'],
  cuDeviceGetCount: ['void *'],
  cuDeviceGet: ['void *', 'int'],
  cuDeviceGetName: ['void *', 'int', 'int'],
  cuDeviceGetAttribute: ['void *', 'int', 'int'],
  cuDeviceTotalMem_v2: ['void *', 'int'],
  cuDevicePrimaryCtxRetain: ['void *', 'int'],
  cuDevicePrimaryCtxRelease_v2: ['int'],
  cuCtxSetCurrent: ['uint64'],
  cuDeviceCanAccessPeer: ['void *', 'int', 'int'],
  cuCtxEnablePeerAccess: ['uint64', 'uint32'],
  cuMemAlloc_v2: ['void *', 'uint64'],
  cuMemFree_v2: ['uint64'],
  cuMemHostAlloc: ['void *', 'uint64', 'uint32'],
  cuMemFreeHost: ['uint64'],
  cuMemcpyHtoDAsync_v2: ['uint64', 'uint64', 'uint64', 'uint64'],
  cuMemcpyDtoHAsync_v2: ['uint64', 'uint64', 'uint64', 'uint64'],
  cuMemcpyDtoDAsync_v2: ['uint64', 'uint64', 'uint64', 'uint64'],
  // Where to and its context, where from and its context, bytes, stream.
  cuMemcpyPeerAsync: [
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
  ],
  cuMemsetD8Async: ['uint64', 'uint32', 'uint64', 'uint64'],
  cuMemsetD32Async: ['uint64', 'uint32', 'uint64', 'uint64'],
  cuStreamCreate: ['void *', 'uint32'],
  cuStreamDestroy_v2: ['uint64'],
  cuStreamSynchronize: ['uint64'],
  cuStreamWaitEvent: ['uint64', 'uint64', 'uint32'],
  cuStreamBeginCapture_v2: ['uint64', 'int'],
  cuStreamEndCapture: ['uint64', 'void *'],
  cuGraphInstantiateWithFlags: ['void *', 'uint64', 'uint64'],
  cuGraphLaunch: ['uint64', 'uint64'],
  cuGraphDestroy: ['uint64'],
  cuGraphExecDestroy: ['uint64'],
  cuEventCreate: ['void *', 'uint32'],
  cuEventDestroy_v2: ['uint64'],
  cuEventRecord: ['uint64', 'uint64'],
  cuEventQuery: ['uint64'],
  cuEventSynchronize: ['uint64'],
  cuModuleLoadData: ['void *', 'void *'],
  cuModuleUnload: ['uint64'],
  cuModuleGetFunction: ['void *', 'uint64', 'const char *'],
  cuFuncSetAttribute: ['uint64', 'int', 'int'],
  // Where to; type, rank; address, extents, strides, box, steps; interleave,
  // swizzle, promotion in the L2 cache, what lies outside.
  cuTensorMapEncodeTiled: [
    'uint64',
    'int',
    'uint32',
    'uint64',
    'void *',
    'void *',
    'void *',
    'void *',
    'int',
    'int',
    'int',
    'int',
  ],
  // Function; blocks and threads on three axes; shared memory; stream;
  // arguments, one by one or packed.
  cuLaunchKernel: [
    'uint64',
    'uint32',
    'uint32',
    'uint32',
    'uint32',
    'uint32',
    'uint32',
    'uint32',
    'uint64',
    'uint64',
    'uint64',
  ],
  // A `CUlaunchConfig`, function, arguments as before.
  cuLaunchKernelEx: ['uint64', 'uint64', 'uint64', 'uint64'],
} as const satisfies Readonly<Record<string, Signature>>;

/** libnvrtc. */
export const compilerFunctions = {
  nvrtcVersion: ['void *', 'void *'],
  // Program, source, name, then the headers: count, texts, names.
  nvrtcCreateProgram: [
    'void *',
    'const char *',
    'const char *',
    'int',
    'uint64',
    'uint64',
  ],
  nvrtcDestroyProgram: ['void *'],
  nvrtcCompileProgram: ['uint64', 'int', 'uint64'],
  nvrtcGetProgramLogSize: ['uint64', 'void *'],
  nvrtcGetProgramLog: ['uint64', 'void *'],
  nvrtcGetCUBINSize: ['uint64', 'void *'],
  nvrtcGetCUBIN: ['uint64', 'void *'],
} as const satisfies Readonly<Record<string, Signature>>;

/** libcublasLt. */
export const productFunctions = {
  cublasLtCreate: ['void *'],
  cublasLtDestroy: ['uint64'],
  cublasLtMatmulDescCreate: ['void *', 'int', 'int'],
  cublasLtMatmulDescSetAttribute: ['uint64', 'int', 'void *', 'uint64'],
  cublasLtMatmulDescDestroy: ['uint64'],
  cublasLtMatrixLayoutCreate: ['void *', 'int', 'uint64', 'uint64', 'uint64'],
  cublasLtMatrixLayoutSetAttribute: ['uint64', 'int', 'void *', 'uint64'],
  cublasLtMatrixLayoutDestroy: ['uint64'],
  cublasLtMatmulPreferenceCreate: ['void *'],
  cublasLtMatmulPreferenceSetAttribute: ['uint64', 'int', 'void *', 'uint64'],
  cublasLtMatmulPreferenceDestroy: ['uint64'],
  cublasLtMatmulAlgoGetHeuristic: [
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'int',
    'void *',
    'void *',
  ],
  // Handle, product, alpha, A, its layout, B, its layout, beta, C, its layout,
  // D, its layout, algorithm, workspace, its size, stream.
  cublasLtMatmul: [
    'uint64',
    'uint64',
    'void *',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'void *',
    'uint64',
    'uint64',
    'uint64',
    'uint64',
    'void *',
    'uint64',
    'uint64',
    'uint64',
  ],
} as const satisfies Readonly<Record<string, Signature>>;

export type DriverLibrary = Bound<typeof driverFunctions>;
export type CompilerLibrary = Bound<typeof compilerFunctions>;
export type ProductLibrary = Bound<typeof productFunctions>;

/** A loaded library with these functions. Throws what the loader says. */
export function bind<Table extends Readonly<Record<string, Signature>>>(
  path: string,
  table: Table,
): Bound<Table> {
  const library = koffi.load(path);
  return Object.fromEntries(
    Object.entries(table).map(([name, signature]) => [
      name,
      library.func(name, 'int', [...signature]),
    ]),
  ) as unknown as Bound<Table>;
}

/**
 * A 64-bit number as JavaScript's own.
 * @throws RangeError past 2^53, where it would lose digits.
 */
export function u64(value: bigint | number): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number) || number < 0) {
    throw new RangeError(
      `cuda: an address or size must be below 2^53, got ${value}`,
    );
  }
  return number;
}

/** The one handle or size that a call writes. */
export class Out {
  readonly memory = new BigUint64Array(1);

  take<T extends number = number>(): T {
    return u64(this.memory[0] ?? 0n) as T;
  }

  /** As a 32-bit number. */
  takeInt(): number {
    return new Int32Array(this.memory.buffer)[0] ?? 0;
  }
}

/** Host memory that stays where it is until it is freed. */
export class NativeMemory {
  readonly address: HostPointer;
  readonly bytes: Uint8Array<ArrayBuffer>;
  private readonly block: unknown;

  constructor(size: number) {
    this.block = koffi.alloc('uint8', size);
    this.address = u64(koffi.address(this.block)) as HostPointer;
    this.bytes = new Uint8Array(koffi.view(this.block, size));
  }

  free(): void {
    koffi.free(this.block);
  }
}

/** Memory at an address that a library gave, as bytes. */
export function bytesAt(
  address: HostPointer,
  size: number,
): Uint8Array<ArrayBuffer> {
  return new Uint8Array(koffi.view(BigInt(address), size));
}

/** Text at an address, up to its zero. */
export function textAt(address: number): string {
  return koffi.decode.string(BigInt(address));
}
