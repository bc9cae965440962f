import { ArgumentError, UnsupportedError } from '@asa/core';
import { checkKnownAnswer } from '../known-answer';
import {
  bind,
  type CompilerLibrary,
  compilerFunctions,
  type DriverLibrary,
  driverFunctions,
  type ProductLibrary,
  productFunctions,
} from './bindings';
import { Compiler } from './compiler';
import { CudaBackend } from './cuda-backend';
import { type DeviceFacts, Driver } from './driver';
import { defaultCacheFolder, KernelCache } from './kernel-cache';
import {
  cublasLibrary,
  cudaLibrary,
  type LoadedLibrary,
  loadLibrary,
  nvrtcLibrary,
} from './libraries';

export interface CudaOptions {
  /** Number of the device, from 0. */
  readonly device?: number;
  /** Bytes that device memory may take; what the device has when missing. */
  readonly limitBytes?: number;
  /** New memory holds NaN (-2^31 in i32), so that tests see it being read. */
  readonly poison?: boolean;
  /** Lets products of f32 use tensor cores, with 10 bits of mantissa. */
  readonly allowTf32?: boolean;
  /** Where compiled kernels are kept; `null` keeps none. */
  readonly cacheFolder?: string | null;
}

/** What there is to open, and where it was found. */
export interface CudaReport {
  /** The device in words. */
  readonly description: string;
  readonly devices: readonly DeviceFacts[];
  /** Paths of the libraries that were loaded. */
  readonly libraries: Readonly<Record<'cuda' | 'nvrtc' | 'cublasLt', string>>;
  /** NVRTC's. */
  readonly compilerVersion: string;
  /** Where compiled kernels are kept. */
  readonly cacheFolder: string;
}

/** Tensor cores for 16-bit types, asynchronous copies. */
const LEAST_CAPABILITY = 80;

/**
 * Opens a CUDA device. Kernels are compiled for it when they are first needed,
 * and kept on disk.
 * @throws UnsupportedError without the libraries or a device of compute
 * capability 8.0, or where the first product that it computes is wrong.
 */
export async function openCuda(
  options: CudaOptions = {},
): Promise<CudaBackend> {
  const { device = 0, limitBytes = Number.POSITIVE_INFINITY } = options;
  if (!(limitBytes >= 0)) {
    throw new ArgumentError(
      `cuda: limitBytes must be a number of at least 0, got ${limitBytes}`,
    );
  }
  const { driver, compiler, products } = load();
  const own = deviceOf(driver, device);
  // Scratch memory is a share of what there may be.
  const totalBytes = Math.min(own.totalBytes, limitBytes);
  const facts = { ...own, totalBytes };
  const { cacheFolder = defaultCacheFolder() } = options;
  const backend = new CudaBackend({
    driver,
    compiler,
    products,
    cache: new KernelCache(cacheFolder ?? undefined),
    device,
    facts,
    limitBytes,
    poison: options.poison ?? false,
    allowTf32: options.allowTf32 ?? false,
  });
  try {
    await checkKnownAnswer(backend);
  } catch (error) {
    await backend.destroy();
    throw error;
  }
  return backend;
}

/** What `openCuda` would take; throws as it does. */
export async function explainCuda(
  options: Pick<CudaOptions, 'device'> = {},
): Promise<CudaReport> {
  const { driver, compiler, paths } = load();
  const count = driver.deviceCount();
  const { name, capability } = deviceOf(driver, options.device ?? 0);
  return {
    description: `${name}, sm_${capability}`,
    devices: Array.from({ length: count }, (_, index) => driver.facts(index)),
    libraries: paths,
    compilerVersion: compiler.version,
    cacheFolder: defaultCacheFolder(),
  };
}

interface Libraries {
  readonly cuda: LoadedLibrary<DriverLibrary>;
  readonly nvrtc: LoadedLibrary<CompilerLibrary>;
  readonly cublasLt: LoadedLibrary<ProductLibrary>;
}

/** Loaded once: what a process has loaded stays. */
let libraries: Libraries | undefined;

/** The libraries, and libcuda started. */
function load() {
  return asUnsupported(() => {
    libraries ??= findLibraries();
    const { cuda, nvrtc, cublasLt } = libraries;
    const driver = new Driver(cuda.functions);
    driver.init();
    return {
      driver,
      compiler: new Compiler(nvrtc.functions),
      products: cublasLt.functions,
      paths: { cuda: cuda.path, nvrtc: nvrtc.path, cublasLt: cublasLt.path },
    };
  });
}

function findLibraries(): Libraries {
  if (process.platform !== 'linux') {
    throw new Error(`it needs Linux, this is ${process.platform}`);
  }
  return {
    cuda: loadLibrary(cudaLibrary, (path) => bind(path, driverFunctions)),
    nvrtc: loadLibrary(nvrtcLibrary, (path) => bind(path, compilerFunctions)),
    cublasLt: loadLibrary(cublasLibrary, (path) =>
      bind(path, productFunctions),
    ),
  };
}

function deviceOf(driver: Driver, device: number): DeviceFacts {
  return asUnsupported(() => {
    const count = driver.deviceCount();
    if (!(Number.isInteger(device) && device >= 0 && device < count)) {
      throw new Error(`device ${device} is not one of ${count}`);
    }
    const facts = driver.facts(device);
    if (facts.capability < LEAST_CAPABILITY) {
      throw new Error(
        `it needs compute capability 8.0, and ${facts.name} has ${facts.capability / 10}`,
      );
    }
    return facts;
  });
}

/** Failures while opening say why the backend cannot be used here. */
function asUnsupported<T>(body: () => T): T {
  try {
    return body();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UnsupportedError('open', 'cuda', reason);
  }
}
