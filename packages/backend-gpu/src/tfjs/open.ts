import { UnsupportedError } from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { type Engine, type EngineHost, engines, firstLine } from './engines';
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
      const description = await start(engine, host);
      return new TfjsBackend(engine.id, description, options.limitBytes);
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

async function start(engine: Engine, host: EngineHost): Promise<string> {
  await engine.prepare(host);
  // Its checks are done already, and it would praise tfjs-node at each start.
  tf.enableProdMode();
  if (!(await tf.setBackend(engine.id))) {
    throw new Error(`tfjs's backend ${engine.id} does not start`);
  }
  await tf.ready();
  await checkKnownAnswer();
  return `TensorFlow.js ${tf.version_core}, ${engine.name}`;
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
    software,
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
