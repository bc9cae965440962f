/** The GPU drivers of asa. Each also has an entry of its own. */
export {
  type GpuDriverName,
  type GpuOptions,
  gpuDrivers,
  openGpu,
} from './open-gpu';
export * from './webgpu';
