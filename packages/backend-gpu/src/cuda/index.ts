export type { CudaBackend } from './cuda-backend';
export type { DeviceFacts } from './driver';
export {
  type CudaOptions,
  type CudaReport,
  explainCuda,
  openCuda,
} from './open';
