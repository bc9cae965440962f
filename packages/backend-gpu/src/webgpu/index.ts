export {
  type AdapterReport,
  explainWebGpu,
  openWebGpu,
  type WebGpuOptions,
} from './open';
export type { WebGpuBackend } from './webgpu-backend';
