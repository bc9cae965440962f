import { AsaError, CompileError } from '@asa/core';
import {
  type CompilerLibrary,
  NativeMemory,
  type NvrtcProgram,
  Out,
} from './bindings';

/** One compilation. */
export interface CompileRequest {
  readonly name: string;
  readonly source: string;
  /** Texts by the name that `#include` gives. */
  readonly headers: Readonly<Record<string, string>>;
  readonly options: readonly string[];
}

/** NVRTC: CUDA C++ to machine code, in this process. */
export class Compiler {
  readonly version: string;

  constructor(private readonly nvrtc: CompilerLibrary) {
    const major = new Out();
    const minor = new Out();
    this.check('nvrtcVersion', nvrtc.nvrtcVersion(major.memory, minor.memory));
    this.version = `${major.takeInt()}.${minor.takeInt()}`;
  }

  /** @throws CompileError with the compiler's log and the source. */
  compile({ name, source, headers, options }: CompileRequest): Uint8Array {
    const { nvrtc } = this;
    const out = new Out();
    const texts = new CStrings(Object.values(headers));
    const names = new CStrings(Object.keys(headers));
    const created = nvrtc.nvrtcCreateProgram(
      out.memory,
      source,
      name,
      names.count,
      texts.address,
      names.address,
    );
    texts.free();
    names.free();
    this.check('nvrtcCreateProgram', created);
    const program = out.take<NvrtcProgram>();
    const flags = new CStrings(options);
    try {
      const { count, address } = flags;
      const status = nvrtc.nvrtcCompileProgram(program, count, address);
      if (status !== 0) throw new CompileError(name, this.log(program), source);
      return this.machineCode(program);
    } finally {
      flags.free();
      nvrtc.nvrtcDestroyProgram(out.memory);
    }
  }

  private machineCode(program: NvrtcProgram): Uint8Array {
    const { nvrtc } = this;
    const out = new Out();
    const size = nvrtc.nvrtcGetCUBINSize(program, out.memory);
    this.check('nvrtcGetCUBINSize', size);
    const code = new Uint8Array(out.take());
    this.check('nvrtcGetCUBIN', nvrtc.nvrtcGetCUBIN(program, code));
    return code;
  }

  private log(program: NvrtcProgram): string {
    const { nvrtc } = this;
    const out = new Out();
    if (nvrtc.nvrtcGetProgramLogSize(program, out.memory) !== 0) return '';
    const text = new Uint8Array(out.take());
    nvrtc.nvrtcGetProgramLog(program, text);
    return new TextDecoder().decode(text.subarray(0, -1));
  }

  private check(call: string, status: number): void {
    if (status !== 0) throw new AsaError(`cuda: ${call}: status ${status}`);
  }
}

/** `const char *const *` and the texts behind it, in one piece of memory. */
class CStrings {
  readonly count: number;
  readonly address: number;
  private readonly memory: NativeMemory | undefined;

  constructor(texts: readonly string[]) {
    this.count = texts.length;
    const encoder = new TextEncoder();
    const encoded = texts.map((text) => encoder.encode(`${text}\0`));
    const size = encoded.reduce((sum, text) => sum + text.length, 0);
    this.memory =
      size > 0 ? new NativeMemory(8 * this.count + size) : undefined;
    this.address = this.memory?.address ?? 0;
    if (!this.memory) return;
    const { bytes } = this.memory;
    const pointers = new DataView(bytes.buffer);
    let at = 8 * this.count;
    encoded.forEach((text, index) => {
      pointers.setBigUint64(8 * index, BigInt(this.address + at), true);
      bytes.set(text, at);
      at += text.length;
    });
  }

  free(): void {
    this.memory?.free();
  }
}
