import type { GpuJsOptions } from '@asa/backend-gpu/gpujs';
import type { TfjsOptions } from '@asa/backend-gpu/tfjs';
import type { Backend } from '@asa/core';
import { ExitError, exitCode, UsageError } from './exit';
import { whyNoGpu } from './gpu-probe';
import { whyNotWebGpu } from './probe-memory';
import { note } from './terminal';

/** One way to compute, behind an import that happens when it is asked for. */
export interface BackendEntry {
  readonly name: string;
  /**
   * Why it cannot be used here, found out without a risk for this process;
   * nothing when it can.
   */
  explain(): Promise<string | undefined>;
  /** @throws when it cannot be used here. */
  open(): Promise<Backend>;
  /** The same on one of several devices, where they have numbers. */
  readonly openDevice?: (device: number) => Promise<Backend>;
}

interface LibraryOptions {
  readonly software?: boolean;
  readonly onPass?: (way: string, reason: string) => void;
}

/**
 * A driver on a library that computes in several ways: the best of them, or
 * the one that is named, then on a software adapter too.
 */
function library<Way extends string>(
  driver: string,
  open: (way: Way | undefined, options: LibraryOptions) => Promise<Backend>,
): (way?: Way) => BackendEntry {
  return (way) => {
    const name = way ? `${driver}-${way}` : driver;
    const onPass = (passed: string, reason: string) =>
      note(`${name} passed over ${passed}: ${reason}`);
    return {
      name,
      explain: async () => undefined,
      open: () => open(way, way ? { software: true } : { onPass }),
    };
  };
}

const tfjs = library('tfjs', async (engine: TfjsOptions['engine'], options) => {
  const { openTfjs } = await import('@asa/backend-gpu/tfjs');
  return openTfjs({ engine, ...options });
});

const gpujs = library('gpujs', async (mode: GpuJsOptions['mode'], options) => {
  const { openGpuJs } = await import('@asa/backend-gpu/gpujs');
  return openGpuJs({ mode, ...options });
});

/** All backends, in the order in which `auto` tries them. */
const backends: readonly BackendEntry[] = [
  {
    name: 'webgpu',
    explain: async () => (await whyNoGpu()) ?? (await whyNotWebGpu()),
    open: async () => {
      const { openWebGpu } = await import('@asa/backend-gpu/webgpu');
      // Kernels keep their own bounds: Dawn's would halve some of them.
      return openWebGpu({ hardwareOnly: true, boundsChecks: false });
    },
  },
  {
    name: 'cpu',
    explain: async () => undefined,
    open: async () => (await import('@asa/backend-cpu')).openCpu(),
  },
  {
    // Behind the CPU: for now it is asked for by its name.
    name: 'cuda',
    explain: async () => {
      const { explainCuda } = await import('@asa/backend-gpu/cuda');
      return explainCuda().then(() => undefined, reasonOf);
    },
    open: async () => (await import('@asa/backend-gpu/cuda')).openCuda(),
    openDevice: async (device) =>
      (await import('@asa/backend-gpu/cuda')).openCuda({ device }),
  },
  // Behind the CPU, which every machine has: for those who ask for them.
  tfjs(),
  ...(['node-gpu', 'webgpu', 'wasm', 'cpu'] as const).map((engine) =>
    tfjs(engine),
  ),
  gpujs(),
  ...(['webgpu', 'wasm', 'cpu'] as const).map((mode) => gpujs(mode)),
];

/** What `--backend` takes. */
export const backendNames: readonly string[] = [
  'auto',
  ...backends.map(({ name }) => name),
];

/** A backend that was named and cannot be used here. */
export class UnavailableError extends ExitError {
  constructor(name: string, reason: string) {
    super(
      exitCode.unavailable,
      `backend ${name} is not available here: ${reason}`,
    );
  }
}

/**
 * Opens the backend of that name, or for `auto` the first that can be used,
 * and then says on stderr which one and why not the ones before.
 * @throws UnavailableError
 */
export async function openBackend(
  name: string,
  entries: readonly BackendEntry[] = backends,
): Promise<Backend> {
  if (name !== 'auto') {
    const entry = entries.find((candidate) => candidate.name === name);
    if (!entry) throw new UnavailableError(name, 'no such backend');
    return openOrThrow(name, () => entry.open());
  }
  const passed: string[] = [];
  for (const entry of entries) {
    const opened =
      (await entry.explain()) ?? (await tryOpen(() => entry.open()));
    if (typeof opened !== 'string') {
      note([took(opened), ...passed].join('; '));
      return opened;
    }
    passed.push(`passed over ${entry.name}: ${opened}`);
  }
  throw new UnavailableError(name, passed.join('; '));
}

/** Opens a backend, runs `work`, and frees it whatever happens. */
export function withBackend<T>(
  name: string,
  work: (backend: Backend) => Promise<T>,
): Promise<T> {
  return withBackends(name, undefined, ([backend]) => work(backend));
}

/**
 * The same with one backend for each device, in their order; a single one that
 * chooses for itself where no devices are given.
 * @throws UnavailableError where one of them cannot be opened; UsageError where
 *   the backend's devices have no numbers.
 */
export async function withBackends<T>(
  name: string,
  devices: readonly number[] | undefined,
  work: (backends: readonly [Backend, ...Backend[]]) => Promise<T>,
  entries: readonly BackendEntry[] = backends,
): Promise<T> {
  const opened: Backend[] = [];
  try {
    if (devices === undefined) opened.push(await openBackend(name, entries));
    else {
      const open = deviceOpener(name, entries);
      for (const device of devices) opened.push(await open(device));
    }
    const [first, ...others] = opened;
    if (!first) throw new UsageError('--device: give at least one device');
    return await work([first, ...others]);
  } finally {
    await Promise.all(opened.map((backend) => backend.destroy()));
  }
}

/**
 * Opens devices of a backend by their numbers.
 * @throws UsageError where they have none.
 */
export function deviceOpener(
  name: string,
  entries: readonly BackendEntry[] = backends,
): (device: number) => Promise<Backend> {
  const entry = entries.find((candidate) => candidate.name === name);
  const open = entry?.openDevice;
  if (!open) {
    const able = entries.filter(({ openDevice }) => openDevice);
    const names = able.map((each) => each.name).join(', ');
    throw new UsageError(
      `--device: the devices of backend ${name} have no numbers; those of ${names} have, give --backend`,
    );
  }
  return (device) => openOrThrow(name, () => open(device));
}

async function openOrThrow(
  name: string,
  open: () => Promise<Backend>,
): Promise<Backend> {
  const opened = await tryOpen(open);
  if (typeof opened === 'string') throw new UnavailableError(name, opened);
  return opened;
}

const took = ({ name, description }: Backend) =>
  `backend ${name} (${description})`;

/** The backend, or why there is none. */
async function tryOpen(
  open: () => Promise<Backend>,
): Promise<Backend | string> {
  try {
    return await open();
  } catch (error) {
    return reasonOf(error);
  }
}

/** An error's reason, without the words about the operator. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return 'reason' in error ? `${error.reason}` : error.message;
}
