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

/** A driver that no failure has ended yet, and the compiler. */
export async function loadEmulator() {
  const folder = await buildEmulator();
  // The others need what the first one has.
  const driver = new Driver(
    bind(join(folder, 'libcuda.so.1'), driverFunctions),
  );
  driver.init();
  const nvrtc = bind(join(folder, 'libnvrtc.so.13'), compilerFunctions);
  const products = bind(join(folder, 'libcublasLt.so.13'), productFunctions);
  const cache = new KernelCache(join(folder, 'kernels'));
  return { driver, compiler: new Compiler(nvrtc), products, cache };
}

/** @param facts what the card is to say of itself, where it matters. */
export async function openEmulated(
  facts: Partial<DeviceFacts> = {},
): Promise<CudaBackend> {
  const parts = await loadEmulator();
  return new CudaBackend({
    ...parts,
    device: 0,
    facts: { ...parts.driver.facts(0), ...facts },
    limitBytes: Number.POSITIVE_INFINITY,
    poison: true,
    allowTf32: false,
  });
}
