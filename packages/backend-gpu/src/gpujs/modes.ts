import { wordsOf } from '../webgpu/open';
import { type GpuJs, Processor } from './processor';

export type ModeName = 'webgpu' | 'wasm' | 'cpu';

/** What modes are given, so that tests can stand in for it. */
export interface ModeHost {
  /** `import()` of gpu.js. */
  readonly load: () => Promise<unknown>;
  /** Puts a GPU into `navigator.gpu`; throws with the reason without one. */
  readonly offer: () => Promise<void>;
  /** Take a software adapter too. */
  readonly software: boolean;
}

/** A mode that was started. */
interface Started {
  readonly processor: Processor;
  /** The device in words. */
  readonly words: string;
  /** Has errors reported that no call throws. */
  readonly watch: (report: (message: string) => void) => void;
  /** Gives back what outlives the kernels. */
  readonly close: () => Promise<void>;
}

/** One of gpu.js's own ways to compute. */
export interface Mode {
  readonly name: ModeName;
  /** Throws with the reason where there is no such way here. */
  prepare(host: ModeHost): Promise<void>;
  start(host: ModeHost): Promise<Started>;
}

/** gpu.js, as far as this driver needs it. Its own types lack its last modes. */
interface GpuJsModule {
  readonly GPU: {
    new (settings: { readonly mode: string }): GpuJs;
    readonly isWebAssemblySupported: boolean;
  };
  readonly WebGPUContext: {
    acquire(): Promise<{
      readonly adapter: GPUAdapter;
      readonly device: GPUDevice;
    }>;
    destroy(): Promise<void>;
  };
}

/** In the order in which they are tried. */
export const modes: readonly Mode[] = [
  {
    name: 'webgpu',
    prepare: ({ offer }) => offer(),
    start: startWebGpu,
  },
  {
    name: 'wasm',
    async prepare(host) {
      const { GPU } = await gpuJs(host);
      if (!GPU.isWebAssemblySupported) throw new Error('there is none here');
    },
    start: (host) => startOnHost(host, 'webasm', 'WebAssembly'),
  },
  {
    name: 'cpu',
    async prepare(host) {
      await gpuJs(host);
    },
    start: (host) => startOnHost(host, 'cpu', 'JavaScript on one CPU thread'),
  },
];

async function gpuJs({ load }: ModeHost): Promise<GpuJsModule> {
  const loaded = (await load()) as { readonly default?: object };
  return (loaded.default ?? loaded) as GpuJsModule;
}

/** Backends that use gpu.js's device, which is one for the process. */
let users = 0;

async function startWebGpu(host: ModeHost): Promise<Started> {
  const { GPU, WebGPUContext } = await gpuJs(host);
  users += 1;
  const close = async () => {
    users -= 1;
    // Node.js does not end while it is there.
    if (users === 0) await WebGPUContext.destroy();
  };
  try {
    const { adapter, device } = await WebGPUContext.acquire();
    const { words, isSoftware } = wordsOf(adapter);
    if (isSoftware && !host.software) {
      throw new Error(`gpu.js takes ${words}`);
    }
    return {
      processor: new Processor(new GPU({ mode: 'webgpu' }), true),
      words,
      watch: (report) => {
        device.addEventListener('uncapturederror', ({ error }) =>
          report(error.message),
        );
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function startOnHost(
  host: ModeHost,
  mode: string,
  words: string,
): Promise<Started> {
  const { GPU } = await gpuJs(host);
  return {
    processor: new Processor(new GPU({ mode }), false),
    words,
    watch: () => {},
    close: async () => {},
  };
}
