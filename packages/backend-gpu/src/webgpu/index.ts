export {
  type AdapterReport,
  explainWebGpu,
  listAdapters,
  type Opened,
  openTimed,
  openWebGpu,
  type WebGpuOptions,
} from './open';
export type { WebGpuBackend } from './webgpu-backend';
