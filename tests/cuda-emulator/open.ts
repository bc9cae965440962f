/** The CUDA driver on the emulated libraries, in this process. */
import { join } from 'node:path';
import {
  bind,
  compilerFunctions,
  driverFunctions,
  productFunctions,
} from '../../packages/backend-gpu/src/cuda/bindings';
import { Compiler } from '../../packages/backend-gpu/src/cuda/compiler';
import { CudaBackend } from '../../packages/backend-gpu/src/cuda/cuda-backend';
import {
  type DeviceFacts,
  Driver,
} from '../../packages/backend-gpu/src/cuda/driver';
import { KernelCache } from '../../packages/backend-gpu/src/cuda/kernel-cache';
import { buildEmulator } from './build.mjs';

/** Loaded once, as `openCuda` does: backends of one library know each other. */
let libraries: ReturnType<typeof bindAll> | undefined;

function bindAll(folder: string) {
  return {
    // The others need what the first one has.
    cuda: bind(join(folder, 'libcuda.so.1'), driverFunctions),
    nvrtc: bind(join(folder, 'libnvrtc.so.13'), compilerFunctions),
    products: bind(join(folder, 'libcublasLt.so.13'), productFunctions),
    cache: new KernelCache(join(folder, 'kernels')),
  };
}

/** A driver that no failure has ended yet, and the compiler. */
export async function loadEmulator() {
  const folder = await buildEmulator();
  libraries ??= bindAll(folder);
  const { cuda, nvrtc, products, cache } = libraries;
  const driver = new Driver(cuda);
  driver.init();
  return { driver, compiler: new Compiler(nvrtc), products, cache };
}

/**
 * @param facts what is said of the card in place of the truth.
 * @param device one of two.
 * @param limitBytes as `openCuda` takes it.
 */
export async function openEmulated(
  facts?: Partial<DeviceFacts>,
  device = 0,
  limitBytes = Number.POSITIVE_INFINITY,
): Promise<CudaBackend> {
  const parts = await loadEmulator();
  return new CudaBackend({
    ...parts,
    device,
    facts: { ...parts.driver.facts(device), ...facts },
    limitBytes,
    poison: true,
    allowTf32: false,
  });
}
