import { spawn } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { AdapterReport } from '@asa/backend-gpu/webgpu';

/**
 * What a process of its own found out about WebGPU. A driver that hangs or
 * crashes takes that process with it, not the program.
 */
export interface ProbeReport {
  /** The device that opened and computed a known product right. */
  readonly device?: string;
  /** Why there is none. */
  readonly reason?: string;
  /** From the start to the open device, and the known product on it. */
  readonly openMs?: number;
  readonly checkMs?: number;
  readonly adapters: readonly AdapterReport[];
  /** Vulkan libraries that are in use, where the system tells. */
  readonly libraries: readonly string[];
}

const script = fileURLToPath(new URL('./probe.js', import.meta.url));

/** Far above what a driver takes, the first time after a start too. */
const PATIENCE_MS = 15_000;

export interface ProbeOptions {
  /** Report every adapter, too. */
  readonly adapters?: boolean;
  /** The program that tries; ours when left out. */
  readonly path?: string;
  readonly patienceMs?: number;
}

/** Opens WebGPU in another process. Never throws, never takes longer. */
export function probeWebGpu({
  adapters = false,
  path = script,
  patienceMs = PATIENCE_MS,
}: ProbeOptions = {}): Promise<ProbeReport> {
  const failed = (reason: string): ProbeReport => ({
    reason,
    adapters: [],
    libraries: [],
  });
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      [path, ...(adapters ? ['adapters'] : [])],
      {
        stdio: ['ignore', 'pipe', 'ignore'],
        timeout: patienceMs,
        killSignal: 'SIGKILL',
      },
    );
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (part: string) => {
      text += part;
    });
    child.once('error', ({ message }) => resolve(failed(message)));
    child.once('close', (code, signal) => {
      const report = parse(text);
      // What it found out counts, even if it crashed on the way out.
      if (report) resolve(report);
      else if (child.killed) {
        const seconds = patienceMs / 1000;
        resolve(failed(`the driver did not answer within ${seconds} s`));
      } else {
        const how = signal ? `signal ${signal}` : `exit code ${code}`;
        resolve(failed(`the driver ended the process that tried it, ${how}`));
      }
    });
  });
}

function parse(text: string): ProbeReport | undefined {
  try {
    return JSON.parse(text) as ProbeReport;
  } catch {
    return undefined;
  }
}

/** Device files of GPUs: NVIDIA, AMD and Intel, WSL, Tegra, Adreno, Mali. */
const gpuFiles: readonly (readonly [folder: string, name: RegExp])[] = [
  ['/dev', /^(nvidia(ctl|\d+)|kfd|dxg|nvhost-gpu|nvgpu|kgsl-3d0|mali\d+)$/],
  ['/dev/dri', /^renderD\d+$/],
];

/**
 * Why there can be no GPU here, found out in no time: loading drivers to see
 * that there is none would slow down every start.
 */
export async function whyNoGpu(
  folders = gpuFiles,
  platform: NodeJS.Platform = process.platform,
): Promise<string | undefined> {
  if (platform !== 'linux') return undefined;
  for (const [folder, pattern] of folders) {
    const names = await readdir(folder).catch(() => []);
    if (names.some((name) => pattern.test(name))) return undefined;
  }
  const looked = folders.map(([folder]) => folder).join(' and ');
  return `no GPU's device file in ${looked}`;
}
