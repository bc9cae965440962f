/**
 * A program of its own: prints what it found out about WebGPU as JSON, with
 * the argument `adapters` about every adapter.
 */
import { readFile } from 'node:fs/promises';
import {
  type AdapterReport,
  listAdapters,
  openTimed,
} from '@asa/backend-gpu/webgpu';
import type { ProbeReport } from './gpu-probe';

async function open(): Promise<Omit<ProbeReport, 'adapters' | 'libraries'>> {
  try {
    const opened = await openTimed({ hardwareOnly: true });
    const { backend, openMs, checkMs } = opened;
    await backend.destroy();
    return { device: backend.description, openMs, checkMs };
  } catch (error) {
    return { reason: reasonOf(error) };
  }
}

async function adapters(): Promise<AdapterReport[]> {
  if (process.argv[2] !== 'adapters') return [];
  return listAdapters().catch(() => []);
}

/** The libraries of Vulkan and its drivers that this process has loaded. */
async function libraries(): Promise<string[]> {
  const maps = await readFile('/proc/self/maps', 'utf8').catch(() => '');
  const paths = maps
    .split('\n')
    .map((line) => line.slice(line.indexOf('/')))
    .filter((path) => /\/lib(vulkan|vk_|GLX_nvidia|EGL_nvidia)/.test(path));
  return [...new Set(paths)].sort();
}

function reasonOf(error: unknown): string {
  if (error instanceof Error && 'reason' in error) return `${error.reason}`;
  return error instanceof Error ? error.message : String(error);
}

const opened = await open();
const report: ProbeReport = {
  ...opened,
  adapters: await adapters(),
  libraries: await libraries(),
};
// Written at once: what follows is the driver's own end.
process.stdout.write(JSON.stringify(report), () => process.exit());
