import { UnsupportedError } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { firstLine } from '../first-line';
import { offerGpu } from '../webgpu/loader';
import { explainWebGpu } from '../webgpu/open';
import { type Engine, type EngineHost, engines } from './engines';
import { TfjsBackend } from './tfjs-backend';

export interface TfjsOptions {
  /** One of tfjs's backends; the first that works when left out. */
  readonly engine?: Engine['name'] | undefined;
  /** Take WebGPU on a software adapter too; WebAssembly is faster there. */
  readonly software?: boolean;
  /** Bytes that tensors may take; no limit when left out. */
  readonly limitBytes?: number;
  /** Told what was passed over, and why. */
  readonly onPass?: (engine: string, reason: string) => void;
  /** Instead of `import()` and the process: for tests. */
  readonly host?: Partial<EngineHost>;
}

/**
 * Opens TensorFlow.js: `tfjs-node-gpu` where the user has installed it, then
 * WebGPU, WebAssembly and plain JavaScript.
 * @throws UnsupportedError with all reasons when none works.
 */
export async function openTfjs(
  options: TfjsOptions = {},
): Promise<TfjsBackend> {
  const passed: string[] = [];
  const host = hostOf(options);
  for (const engine of engines) {
    if (options.engine && engine.name !== options.engine) continue;
    try {
      const release = await start(engine, host);
      return new TfjsBackend(
        engine.id,
        `TensorFlow.js ${tf.version_core}, ${engine.name}`,
        { release, failure: failureOf(engine), limitBytes: options.limitBytes },
      );
    } catch (error) {
      passed.push(`${engine.name}: ${firstLine(error)}`);
      options.onPass?.(engine.name, firstLine(error));
    }
  }
  throw new UnsupportedError(
    'open',
    'tfjs',
    passed.join('; ') || `there is no engine ${options.engine}`,
  );
}

/** What there is: each engine with the reason why it cannot be used here. */
export async function explainTfjs(
  options: TfjsOptions = {},
): Promise<readonly { readonly name: string; readonly reason?: string }[]> {
  const host = hostOf(options);
  const found: { name: string; reason?: string }[] = [];
  for (const engine of engines) {
    const reason = await engine.prepare(host).then(() => undefined, firstLine);
    found.push({ name: engine.name, ...(reason !== undefined && { reason }) });
  }
  return found;
}

/** Starts an engine; returns what to call when it is not needed any more. */
async function start(engine: Engine, host: EngineHost): Promise<() => void> {
  await engine.prepare(host);
  const { id } = engine;
  const users = openedHere.get(id) ?? (tf.findBackend(id) ? undefined : 0);
  // Its checks are done already, and it would praise tfjs-node at each start.
  tf.enableProdMode();
  if (!(await tf.setBackend(id))) {
    throw new Error(`tfjs's backend ${id} does not start`);
  }
  await tf.ready();
  if (users !== undefined) openedHere.set(id, users + 1);
  const release = users === undefined ? () => {} : () => leave(id);
  try {
    await checkKnownAnswer();
  } catch (error) {
    release();
    throw error;
  }
  return release;
}

/** How many use an engine that was not running before. */
const openedHere = new Map<string, number>();

/** The last one out turns off the GPU: an open device keeps Node.js alive. */
function leave(id: string): void {
  const others = (openedHere.get(id) ?? 1) - 1;
  openedHere.set(id, others);
  if (others > 0) return;
  openedHere.delete(id);
  const device = deviceOf(id);
  if (!device) return;
  const factory = tf.findBackendFactory(id);
  tf.removeBackend(id);
  device.destroy();
  // So that it can be started again.
  tf.registerBackend(id, factory);
}

/** Of the engine on WebGPU, once it has started. */
function deviceOf(id: string): GPUDevice | undefined {
  return (tf.findBackend(id) as { device?: GPUDevice }).device;
}

/** WebGPU tells of failed commands by events, which tfjs lets pass. */
function failureOf({ id }: Engine): () => string | undefined {
  let failure: string | undefined;
  deviceOf(id)?.addEventListener('uncapturederror', ({ error }) => {
    failure ??= error.message;
  });
  return () => failure;
}

/** A product whose sums are exact in f32. */
async function checkKnownAnswer(): Promise<void> {
  const y = tf.tidy(() => {
    const a = tf.tensor2d([1, 2, 3, 4, 5, 6], [2, 3]);
    return tf.matMul(a, a, false, true);
  });
  const values = [...(await y.data())];
  y.dispose();
  if (values.join() !== '14,32,32,77') {
    throw new Error(`its first product is wrong, got ${values.join()}`);
  }
}

function hostOf({ host, software = false }: TfjsOptions): EngineHost {
  return {
    load,
    nodeVersion: nodeVersion(),
    offer: async () => {
      await explainWebGpu({ hardwareOnly: !software });
      await offerGpu();
    },
    ...host,
  };
}

function nodeVersion(): string | undefined {
  const { process } = globalThis as {
    process?: { versions?: { node?: string } };
  };
  return process?.versions?.node;
}

/** Names that a bundler can see, but for what only some users install. */
function load(name: string): Promise<unknown> {
  switch (name) {
    case '@tensorflow/tfjs-backend-webgpu':
      return import('@tensorflow/tfjs-backend-webgpu');
    case '@tensorflow/tfjs-backend-wasm':
      return import('@tensorflow/tfjs-backend-wasm');
    case '@tensorflow/tfjs-backend-cpu':
      return import('@tensorflow/tfjs-backend-cpu');
    default:
      return import(name);
  }
}
