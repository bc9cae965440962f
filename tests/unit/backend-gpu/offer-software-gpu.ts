import { offerGpu } from '../../../packages/backend-gpu/src/webgpu/loader';
import { softwareGpu } from './software-gpu';

/** Puts the software GPU where gpu.js and TensorFlow.js look for one. */
export async function offerSoftwareGpu(): Promise<void> {
  const gpu = softwareGpu();
  if (!gpu) return offerGpu();
  Object.defineProperty(globalThis, 'navigator', {
    value: { gpu },
    configurable: true,
    writable: true,
  });
}
