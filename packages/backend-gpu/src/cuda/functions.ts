import type { CudaFunction, CudaModule } from './bindings';
import type { CompileRequest, Compiler } from './compiler';
import type { Driver } from './driver';
import { cacheKey, type KernelCache } from './kernel-cache';
import { headers, type KernelFile, sources } from './kernels/sources';
import type { Launch } from './launch';

interface Loaded {
  readonly kernel: CudaFunction;
  /**
   * Shared memory that it has asked for. What it has without asking is less
   * than 48 KiB by its own tables, of which only the compiler knows.
   */
  sharedBytes: number;
}

/** Compiled kernels: each file and set of definitions is compiled once. */
export class Functions {
  private readonly modules = new Map<string, CudaModule>();
  private readonly loaded = new Map<string, Loaded>();

  constructor(
    private readonly driver: Driver,
    private readonly compiler: Compiler,
    private readonly cache: KernelCache,
    /** As in `sm_90`. */
    private readonly capability: number,
  ) {}

  /** @throws CompileError */
  get(launch: Launch): CudaFunction {
    const { file, entry, defines, sharedBytes = 0 } = launch;
    const key = `${moduleKey(file, defines)}|${entry}`;
    let loaded = this.loaded.get(key);
    if (!loaded) {
      const kernel = this.driver.functionOf(this.module(launch), entry);
      loaded = { kernel, sharedBytes: 0 };
      this.loaded.set(key, loaded);
    }
    if (sharedBytes > loaded.sharedBytes) {
      this.driver.allowShared(loaded.kernel, sharedBytes);
      loaded.sharedBytes = sharedBytes;
    }
    return loaded.kernel;
  }

  destroy(): void {
    for (const module of this.modules.values()) {
      this.driver.unloadModule(module);
    }
    this.modules.clear();
    this.loaded.clear();
  }

  private module({ file, defines }: Launch): CudaModule {
    const key = moduleKey(file, defines);
    let module = this.modules.get(key);
    if (module === undefined) {
      const request = requestOf(file, defines, this.capability);
      module = this.driver.loadModule(this.machineCode(request));
      this.modules.set(key, module);
    }
    return module;
  }

  private machineCode(request: CompileRequest): Uint8Array {
    const key = cacheKey(request, this.compiler.version);
    const known = this.cache.get(key);
    if (known) return known;
    const code = this.compiler.compile(request);
    this.cache.put(key, code);
    return code;
  }
}

function moduleKey(file: KernelFile, defines: Launch['defines']): string {
  let key: string = file;
  for (const name in defines) key += `|${name}=${defines[name]}`;
  return key;
}

/** How a file is compiled for a card. */
export function requestOf(
  file: KernelFile,
  defines: Launch['defines'],
  capability: number,
): CompileRequest {
  return {
    name: `${file}.cu`,
    source: sources[file],
    headers,
    options: [
      `--gpu-architecture=${architectureOf(capability)}`,
      '--std=c++17',
      // Lambdas cannot say that they run on the device.
      '-default-device',
      ...Object.entries(defines).map(([name, value]) => `-D${name}=${value}`),
    ],
  };
}

/** Hopper's own instructions belong to the name with an a. */
function architectureOf(capability: number): string {
  return capability === 90 ? 'sm_90a' : `sm_${capability}`;
}
