import { firstLine } from '../first-line';

/** What `engines` load is given, so that tests can stand in for it. */
export interface EngineHost {
  /** `import()` of a package. */
  readonly load: (name: string) => Promise<unknown>;
  /** Of Node.js, as `process.versions.node`; none in a browser. */
  readonly nodeVersion: string | undefined;
  /** Puts a GPU into `navigator.gpu`; throws with the reason without one. */
  readonly offer: () => Promise<void>;
}

/** One of tfjs's own backends. */
export interface Engine {
  /** What `engine` in the options names. */
  readonly name: 'node-gpu' | 'webgpu' | 'wasm' | 'cpu';
  /** What tfjs calls it. */
  readonly id: string;
  /** Loads and registers it; throws with the reason where it cannot. */
  prepare(host: EngineHost): Promise<void>;
}

/** In the order in which they are tried. */
export const engines: readonly Engine[] = [
  {
    name: 'node-gpu',
    id: 'tensorflow',
    async prepare({ load, nodeVersion }) {
      const major = Number.parseInt(nodeVersion ?? '', 10);
      if (Number.isNaN(major)) throw new Error('it needs Node.js');
      if (major > newestForNodeGpu) {
        throw new Error(
          `@tensorflow/tfjs-node-gpu works up to Node.js ${newestForNodeGpu}, this is ${nodeVersion}`,
        );
      }
      await load('@tensorflow/tfjs-node-gpu').catch((error: unknown) => {
        throw new Error(
          isMissing(error)
            ? '@tensorflow/tfjs-node-gpu is not installed'
            : `@tensorflow/tfjs-node-gpu does not load: ${firstLine(error)}`,
        );
      });
    },
  },
  {
    name: 'webgpu',
    id: 'webgpu',
    async prepare({ load, offer }) {
      await offer();
      await load('@tensorflow/tfjs-backend-webgpu');
    },
  },
  {
    name: 'wasm',
    id: 'wasm',
    async prepare({ load }) {
      await load('@tensorflow/tfjs-backend-wasm');
    },
  },
  {
    name: 'cpu',
    id: 'cpu',
    async prepare({ load }) {
      await load('@tensorflow/tfjs-backend-cpu');
    },
  },
];

/** Newer ones lack what its native part calls. */
const newestForNodeGpu = 22;

function isMissing(error: unknown): boolean {
  const code = (error as { code?: string } | undefined)?.code;
  return (
    (code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND') &&
    String(error).includes('@tensorflow/tfjs-node-gpu')
  );
}
