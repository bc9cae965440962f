import { CompileError, DeviceLostError } from '@asa/core';
import { type Program, program, sourceOf } from './program';

/** gpu.js's handle of a result that stays on the device. */
export interface DeviceResult {
  readonly type: string;
  readonly kernel: {
    /** The kernel's own hold on its last result. */
    outputBuffer: { _refs: number } | null;
  };
  delete(): void;
}

/** An array as programs take it: gpu.js's handle, or the host's own array. */
export type Contents = DeviceResult | Float32Array;

type Argument = Contents | number;

/** Nested where a result has more axes than one. */
type HostResult = Float32Array | readonly HostResult[];

/** A translated function, as far as this driver needs it. */
interface Kernel {
  (...values: readonly Argument[]): unknown;
  setOutput(extents: readonly number[]): unknown;
  destroy(): void;
}

/** What this driver uses of `GPU`. gpu.js's own types lack its last modes. */
export interface GpuJs {
  createKernel(
    source: string,
    settings: Readonly<Record<string, unknown>>,
  ): Kernel;
  destroy(): Promise<void>;
}

/** Extents of a result, the fastest first; one call of the program each. */
export type Threads = readonly [x: number, y?: number, z?: number];

const upload = program('upload', { arrays: ['x'] }, 'return x[this.thread.x];');
const download = program(
  'download',
  { arrays: ['x'] },
  'return x[this.thread.x];',
);

/** Elements from which on a kernel's staging buffers are not worth keeping. */
const large = 2 ** 18;

/**
 * Runs programs through gpu.js, one after the other. In its WebGPU mode arrays
 * are handles of buffers and every call gives a promise; in the others they
 * are the host's arrays.
 */
export class Processor {
  /** By program, then by rank. */
  private readonly kernels = new Map<Program, Map<number, Kernel>>();

  constructor(
    private readonly gpu: GpuJs,
    private readonly isDevice: boolean,
  ) {}

  /** A new result; the arguments stay the caller's. */
  async run(
    called: Program,
    values: readonly Argument[],
    threads: Threads,
  ): Promise<Contents> {
    // An axis of 1 at the end is left out: a row of threads has the better
    // shape for it, and gpu.js allows them more of one.
    const [x, y = 1, z = 1] = threads;
    const extents = z > 1 ? [x, y, z] : y > 1 ? [x, y] : [x];
    const kernel = this.kernel(called, extents.length);
    kernel.setOutput(extents);
    const result = await this.call(called, kernel, values);
    return this.isDevice ? disowned(result) : flat(result, x * y * z);
  }

  /** A copy of host data. */
  async upload(data: Float32Array): Promise<Contents> {
    if (!this.isDevice) return data;
    const kernel = this.kernel(upload, 1, { types: { x: 'Array' } });
    kernel.setOutput([data.length]);
    const result = await this.call(upload, kernel, [data]);
    if (data.length > large) this.drop(upload, kernel);
    return disowned(result);
  }

  /** A copy for the host; waits for the device. */
  async download(contents: Contents, elements: number): Promise<Float32Array> {
    if (contents instanceof Float32Array) return contents.slice();
    const kernel = this.kernel(download, 1, { pipeline: false });
    kernel.setOutput([elements]);
    const result = await this.call(download, kernel, [contents]);
    if (elements > large) this.drop(download, kernel);
    return result as Float32Array;
  }

  release(contents: Contents | undefined): void {
    if (contents && 'delete' in contents) contents.delete();
  }

  destroy(): Promise<void> {
    this.kernels.clear();
    return this.gpu.destroy();
  }

  /** The next call makes another: gpu.js forgets one that was destroyed. */
  private drop(called: Program, kernel: Kernel): void {
    kernel.destroy();
    this.kernels.delete(called);
  }

  private async call(
    { name }: Program,
    kernel: Kernel,
    values: readonly Argument[],
  ): Promise<HostResult | DeviceResult> {
    try {
      return (await kernel(...values)) as HostResult | DeviceResult;
    } catch (error) {
      throw translated(name, error);
    }
  }

  /** Sizes are arguments: a program is translated once for each rank. */
  private kernel(
    called: Program,
    rank: number,
    options: KernelOptions = {},
  ): Kernel {
    const byRank = this.kernels.get(called) ?? new Map<number, Kernel>();
    this.kernels.set(called, byRank);
    const kernel = byRank.get(rank) ?? this.translate(called, rank, options);
    byRank.set(rank, kernel);
    return kernel;
  }

  private translate(
    called: Program,
    rank: number,
    { types = {}, pipeline = true }: KernelOptions,
  ): Kernel {
    const { arrays, integers, reals } = called;
    const array = this.isDevice ? 'WebGPUBuffer' : 'Array';
    return this.gpu.createKernel(sourceOf(called), {
      argumentTypes: {
        ...Object.fromEntries(arrays.map((x) => [x, types[x] ?? array])),
        ...Object.fromEntries(integers.map((x) => [x, 'Integer'])),
        ...Object.fromEntries(reals.map((x) => [x, 'Float'])),
      },
      output: [1, 1, 1].slice(0, rank),
      dynamicOutput: true,
      dynamicArguments: true,
      pipeline,
      // Results are not overwritten by the next call.
      immutable: pipeline,
      // Else a loop of unknown length ends after 1,000 steps, unsaid.
      loopMaxIterations: 2 ** 31 - 1,
    });
  }
}

interface KernelOptions {
  /** Types of arrays that are not handles. */
  readonly types?: Readonly<Record<string, string>>;
  /** Whether the result stays on the device. */
  readonly pipeline?: boolean;
}

/**
 * gpu.js's kernel holds on to its last result until it runs again. That would
 * keep memory in use that nobody has; here the caller alone holds it.
 */
function disowned(result: unknown): DeviceResult {
  const handle = result as DeviceResult;
  const { kernel } = handle;
  if (kernel.outputBuffer) kernel.outputBuffer._refs -= 1;
  kernel.outputBuffer = null;
  return handle;
}

/** Rows of rows, one behind the other. */
function flat(result: unknown, elements: number): Float32Array {
  if (result instanceof Float32Array) return result;
  const values = new Float32Array(elements);
  let at = 0;
  const add = (part: HostResult): void => {
    if (part instanceof Float32Array) {
      values.set(part, at);
      at += part.length;
    } else {
      for (const inner of part) add(inner);
    }
  };
  add(result as HostResult);
  return values;
}

function translated(name: string, error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const { message } = error;
  if (message.includes('device was lost')) {
    return new DeviceLostError(`gpujs: ${message}`, { cause: error });
  }
  if (!/^Error (compiling|creating)/.test(message)) return error;
  const [log = '', source = ''] = message.split('\n--- generated WGSL ---\n');
  return new CompileError(name, log, source);
}
