export type { GpuJsBackend } from './gpujs-backend';
export type { ModeHost, ModeName } from './modes';
export { explainGpuJs, type GpuJsOptions, openGpuJs } from './open';
