import { ArgumentError, UnsupportedError } from '@asa/core';
import { firstLine } from '../first-line';
import { checkKnownAnswer } from '../known-answer';
import { offerGpu } from '../webgpu/loader';
import { explainWebGpu } from '../webgpu/open';
import { GpuJsBackend } from './gpujs-backend';
import { type Mode, type ModeHost, type ModeName, modes } from './modes';

export interface GpuJsOptions {
  /** One of gpu.js's modes; the first that works when left out. */
  readonly mode?: ModeName | undefined;
  /** Take WebGPU on a software adapter too; WebAssembly is faster there. */
  readonly software?: boolean;
  /** Bytes that tensors may take; no limit when left out. */
  readonly limitBytes?: number;
  /** Told what was passed over, and why. */
  readonly onPass?: (mode: string, reason: string) => void;
  /** Instead of `import()` and the process: for tests. */
  readonly host?: Partial<ModeHost>;
}

/**
 * Opens gpu.js: WebGPU where there is a GPU, else WebAssembly or plain
 * JavaScript.
 * @throws UnsupportedError with all reasons when none works; ArgumentError when
 * `limitBytes` is no byte count.
 */
export async function openGpuJs(
  options: GpuJsOptions = {},
): Promise<GpuJsBackend> {
  const { limitBytes = Number.POSITIVE_INFINITY } = options;
  if (!(limitBytes >= 0)) {
    throw new ArgumentError(
      `gpujs: limitBytes must be a number of at least 0, got ${limitBytes}`,
    );
  }
  const passed: string[] = [];
  const host = hostOf(options);
  for (const mode of modes) {
    if (options.mode && mode.name !== options.mode) continue;
    try {
      return await start(mode, host, limitBytes);
    } catch (error) {
      passed.push(`${mode.name}: ${firstLine(error)}`);
      options.onPass?.(mode.name, firstLine(error));
    }
  }
  throw new UnsupportedError(
    'open',
    'gpujs',
    passed.join('; ') || `there is no mode ${options.mode}`,
  );
}

/** What there is: each mode with the reason why it cannot be used here. */
export async function explainGpuJs(
  options: GpuJsOptions = {},
): Promise<readonly { readonly name: ModeName; readonly reason?: string }[]> {
  const host = hostOf(options);
  const found: { name: ModeName; reason?: string }[] = [];
  for (const { name, prepare } of modes) {
    const reason = await prepare(host).then(() => undefined, firstLine);
    found.push({ name, ...(reason !== undefined && { reason }) });
  }
  return found;
}

async function start(
  mode: Mode,
  host: ModeHost,
  limitBytes: number,
): Promise<GpuJsBackend> {
  await mode.prepare(host);
  const { processor, words, watch, close } = await mode.start(host);
  const description = `gpu.js, ${mode.name}: ${words}`;
  const backend = new GpuJsBackend(
    processor,
    mode.name,
    description,
    limitBytes,
    close,
  );
  watch((message) => backend.complain(message));
  try {
    await checkKnownAnswer(backend);
  } catch (error) {
    await backend.destroy();
    throw error;
  }
  return backend;
}

function hostOf({ host, software = false }: GpuJsOptions): ModeHost {
  return {
    load: () => import('gpu.js'),
    offer: async () => {
      await explainWebGpu({ hardwareOnly: !software });
      await offerGpu();
    },
    software,
    ...host,
  };
}
