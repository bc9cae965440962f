export { type CpuOptions, openCpu } from './cpu-backend';
