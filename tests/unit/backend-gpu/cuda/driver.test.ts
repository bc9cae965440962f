import { AsaError, CompileError, DeviceLostError } from '@asa/core';
import koffi from 'koffi';
import { afterAll, describe, expect, it } from 'vitest';
import {
  bytesAt,
  type CompilerLibrary,
  type CudaFunction,
  type CudaStream,
  type DriverLibrary,
  type HostPointer,
  NativeMemory,
  textAt,
} from '../../../../packages/backend-gpu/src/cuda/bindings';
import { Compiler } from '../../../../packages/backend-gpu/src/cuda/compiler';
import { Driver } from '../../../../packages/backend-gpu/src/cuda/driver';

const texts: NativeMemory[] = [];
afterAll(() => {
  for (const text of texts) text.free();
});

/** Text in native memory, as a library would give it. */
function text(words: string): bigint {
  const bytes = new TextEncoder().encode(`${words}\0`);
  const memory = new NativeMemory(bytes.length);
  memory.bytes.set(bytes);
  texts.push(memory);
  return BigInt(memory.address);
}

const set = (out: ArrayBufferView | null, value: bigint) => {
  (out as BigUint64Array)[0] = value;
};

/** A libcuda that answers every call with one status. */
function library(
  status: number,
  answers: Partial<DriverLibrary> = {},
): DriverLibrary {
  const words = {
    cuGetErrorName: (_: number, out: ArrayBufferView | null) => {
      set(out, text('CUDA_ERROR_SOME'));
      return 0;
    },
    cuGetErrorString: (_: number, out: ArrayBufferView | null) => {
      set(out, text('something broke'));
      return 0;
    },
  };
  return new Proxy({ ...words, ...answers } as DriverLibrary, {
    get: (target, name) =>
      target[name as keyof DriverLibrary] ?? (() => status),
  });
}

const stream = 1 as CudaStream;

describe('the driver', () => {
  it('says what libcuda says of a status', () => {
    const driver = new Driver(library(1));
    expect(() => driver.createStream()).toThrow(AsaError);
    expect(() => driver.createStream()).toThrow(
      'cuda: cuStreamCreate: CUDA_ERROR_SOME, something broke',
    );
  });

  it('gives no memory where there is none, and is not ready yet', () => {
    expect(new Driver(library(2)).allocate(8)).toBeUndefined();
    expect(new Driver(library(600)).isPassed(3 as never)).toBe(false);
    expect(new Driver(library(0)).isPassed(3 as never)).toBe(true);
  });

  it('is lost for good after a failure that ends the context', () => {
    const statuses = [700, 1];
    const driver = new Driver(
      library(0, { cuEventQuery: () => statuses.shift() ?? 0 }),
    );
    expect(() => driver.checkAlive()).not.toThrow();
    expect(() => driver.isPassed(3 as never)).toThrow(DeviceLostError);
    expect(() => driver.checkAlive()).toThrow(DeviceLostError);
    // Whatever it says next, the first words are the cause.
    expect(() => driver.isPassed(3 as never)).toThrow(
      'cuda: the device was lost, cuEventQuery: CUDA_ERROR_SOME, something broke; open the backend again',
    );
  });

  it('hands packed arguments to a launch', () => {
    let extra = 0;
    let seen: readonly number[] = [];
    const driver = new Driver(
      library(0, {
        cuLaunchKernel: (...values) => {
          extra = values[10];
          seen = values.slice(0, 10);
          return 0;
        },
      }),
    );
    driver.argumentBytes.set(new TextEncoder().encode('words\0'));
    driver.launch(9 as CudaFunction, [3, 2], [32, 4], 64, 24, stream);
    expect(seen).toEqual([9, 3, 2, 1, 32, 4, 1, 64, 1, 0]);
    const table = readWords(extra as HostPointer, 5);
    // BUFFER_POINTER, where it is, BUFFER_SIZE, where that is, END.
    expect([table[0], table[2], table[4]]).toEqual([1, 2, 0]);
    expect(textAt(table[1] ?? 0)).toBe('words');
    expect(readWords(table[3] as HostPointer, 1)).toEqual([24]);
  });

  it('tells of a launch that starts early as cuda.h lays it out', () => {
    let config = 0;
    let others: readonly number[] = [];
    const driver = new Driver(
      library(0, {
        cuLaunchKernelEx: (first, ...values) => {
          config = first;
          others = values;
          return 0;
        },
      }),
    );
    const how = { isEarly: true };
    driver.launch(9 as CudaFunction, [3, 2], [32, 4], 64, 24, stream, how);
    expect(others.slice(0, 2)).toEqual([9, 0]);
    const bytes = bytesAt(config as HostPointer, 128).slice();
    const numbers = new Uint32Array(bytes.buffer);
    expect([...numbers.slice(0, 7)]).toEqual([3, 2, 1, 32, 4, 1, 64]);
    const [at, attributes] = new BigUint64Array(bytes.buffer, 32, 2);
    expect(at).toBe(BigInt(stream));
    expect(attributes).toBe(BigInt(config + 56));
    // One attribute, PROGRAMMATIC_STREAM_SERIALIZATION, which is on.
    expect([numbers[12], numbers[14], numbers[16]]).toEqual([1, 6, 1]);
  });
});

function readWords(address: HostPointer, count: number): number[] {
  return Array.from({ length: count }, (_, index) =>
    Number(koffi.decode(BigInt(address + 8 * index), 'uint64')),
  );
}

describe('the compiler', () => {
  const log = 'a.cu(1): error: expected a ";"';
  const calls: string[] = [];
  const fake = (compiled: number) =>
    ({
      nvrtcVersion: (major, minor) => {
        set(major, 13n);
        set(minor, 1n);
        return 0;
      },
      nvrtcCreateProgram: (out, source, name, count, headers, names) => {
        const list = [headers, names].map((table) =>
          textAt(readWords(table as HostPointer, 1)[0] ?? 0),
        );
        calls.push(`${source} ${name} ${count} ${list.join(' ')}`);
        set(out, 77n);
        return 0;
      },
      nvrtcCompileProgram: (program, count, options) => {
        const first = readWords(options as HostPointer, 1)[0] ?? 0;
        calls.push(`${program} ${count} ${textAt(first)}`);
        return compiled;
      },
      nvrtcGetProgramLogSize: (_, out) => {
        set(out, BigInt(log.length + 1));
        return 0;
      },
      nvrtcGetProgramLog: (_, out) => {
        (out as Uint8Array).set(new TextEncoder().encode(`${log}\0`));
        return 0;
      },
      nvrtcGetCUBINSize: (_, out) => {
        set(out, 3n);
        return 0;
      },
      nvrtcGetCUBIN: (_, out) => {
        (out as Uint8Array).set([1, 2, 3]);
        return 0;
      },
      nvrtcDestroyProgram: () => {
        calls.push('destroyed');
        return 0;
      },
    }) as CompilerLibrary;
  const request = {
    name: 'a.cu',
    source: 'source',
    headers: { 'b.cuh': 'header' },
    options: ['-DT=f32', '-std=c++17'],
  };

  it('gives sources, headers and options to NVRTC, and takes the code', () => {
    const compiler = new Compiler(fake(0));
    expect(compiler.version).toBe('13.1');
    expect([...compiler.compile(request)]).toEqual([1, 2, 3]);
    expect(calls.splice(0)).toEqual([
      'source a.cu 1 header b.cuh',
      '77 2 -DT=f32',
      'destroyed',
    ]);
  });

  it('fails with the log and the source, and leaves no program behind', () => {
    const compiler = new Compiler(fake(6));
    const error = thrownBy(() => compiler.compile(request));
    expect(error).toBeInstanceOf(CompileError);
    expect(error).toMatchObject({ kernel: 'a.cu', log, source: 'source' });
    expect(calls.splice(0).at(-1)).toBe('destroyed');
  });
});

function thrownBy(body: () => void): unknown {
  try {
    body();
  } catch (error) {
    return error;
  }
  return undefined;
}

describe('drivers of several devices', () => {
  /** A libcuda of devices whose contexts are 10 and above, and its calls. */
  function devices(answers: Partial<DriverLibrary> = {}) {
    const calls: string[] = [];
    let current = 0;
    const own: Partial<DriverLibrary> = {
      cuDeviceGet: (out, index) => {
        set(out, BigInt(index));
        return 0;
      },
      cuDevicePrimaryCtxRetain: (out, device) => {
        set(out, BigInt(10 + device));
        return 0;
      },
      cuCtxSetCurrent: (context) => {
        current = context;
        return 0;
      },
      cuDeviceCanAccessPeer: (out) => {
        set(out, 1n);
        return 0;
      },
      ...answers,
    };
    const shared = new Proxy(library(0, own), {
      get:
        (target, name: keyof DriverLibrary) =>
        (...values: never[]) => {
          if (!/^cu(Ctx|Device)(Get|Set|Primary)/.test(name)) {
            calls.push(`${name} in ${current}`);
          }
          return (target[name] as (...all: never[]) => number)(...values);
        },
    });
    const open = (index: number) => {
      const driver = new Driver(shared);
      driver.retainContext(index);
      return driver;
    };
    return { calls, open };
  }

  it('finds its own context current at every call', () => {
    const { calls, open } = devices();
    const [first, second] = [open(0), open(1)];
    first.createStream();
    second.createStream();
    second.createEvent();
    first.makeWait(stream, 5 as never);
    second.releaseContext(1);
    first.synchronize(stream);
    expect(calls).toEqual([
      'cuStreamCreate in 10',
      'cuStreamCreate in 11',
      'cuEventCreate in 11',
      'cuStreamWaitEvent in 10',
      'cuStreamSynchronize in 10',
    ]);
  });

  const [to, from] = [100 as never, 200 as never];

  it('copies between devices that reach each other, and those that do not', () => {
    const { calls, open } = devices();
    const [first, second] = [open(0), open(1)];
    first.reach(second, 0, 1);
    first.copyFromPeer(to, from, second, 8, stream);
    expect(calls).toEqual([
      'cuDeviceCanAccessPeer in 10',
      'cuCtxEnablePeerAccess in 10',
      'cuMemcpyPeerAsync in 10',
    ]);
    const apart = devices({
      cuDeviceCanAccessPeer: (out) => {
        set(out, 0n);
        return 0;
      },
    });
    apart.open(0).reach(apart.open(1), 0, 1);
    expect(apart.calls).toEqual(['cuDeviceCanAccessPeer in 10']);
  });

  it('may have been let reach another one before', () => {
    const again = devices({ cuCtxEnablePeerAccess: () => 704 });
    again.open(0).reach(again.open(1), 0, 1);
    const never = devices({ cuCtxEnablePeerAccess: () => 1 });
    expect(() => never.open(0).reach(never.open(1), 0, 1)).toThrow(
      'cuCtxEnablePeerAccess: CUDA_ERROR_SOME',
    );
  });

  it('copies within a device that two share', () => {
    const { calls, open } = devices();
    const [first, second] = [open(1), open(1)];
    first.reach(second, 1, 1);
    first.copyFromPeer(to, from, second, 8, stream);
    expect(calls).toEqual(['cuMemcpyDtoDAsync_v2 in 11']);
    expect(first.knows(second)).toBe(true);
    expect(first.knows(devices().open(1))).toBe(false);
  });
});
