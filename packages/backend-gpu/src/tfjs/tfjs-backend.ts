import {
  ArgumentError,
  AsaError,
  type Backend,
  type DType,
  DTypeError,
  type HostArray,
  type KernelTable,
  type MemoryStatistics,
  type OperatorName,
  OutOfMemoryError,
  type Storage,
  type Tensor,
  type TensorSpec,
  TensorStateError,
} from '@asa/core';
import * as tf from '@tensorflow/tfjs-core';
import { checkCopy, checkRange } from '../ranges';
import { bodies } from './kernels';
import { Memory, memoryOf, viewOf } from './memory';

type Operands = Readonly<Record<string, Tensor | undefined>>;
type AnyBody = (
  inputs: Readonly<Record<string, tf.Tensor>>,
  attributes: unknown,
  outputs: Operands,
  written: (operand: string) => HostArray | undefined,
) => Readonly<Record<string, tf.Tensor | undefined>>;

/** Operators as functions of TensorFlow.js, on one of its backends. */
export class TfjsBackend implements Backend {
  readonly name = 'tfjs';
  readonly kernels: KernelTable;
  private readonly live = new Set<Memory>();
  private bytesInUse = 0;
  private peakBytes = 0;
  private allocations = 0;
  private destroyed = false;

  /** @param engine tfjs's name of its backend: `cpu`, `wasm`, `webgpu`. */
  constructor(
    readonly engine: string,
    readonly description: string,
    private readonly options: {
      readonly limitBytes?: number | undefined;
      /** Called when the backend is destroyed. */
      readonly release: () => void;
      /** What the device said of a command that failed. */
      readonly failure: () => string | undefined;
    },
  ) {
    this.kernels = Object.fromEntries(
      Object.entries(bodies).map(([name, body]) => [
        name,
        (inputs: Operands, outputs: Operands, attributes: unknown) =>
          this.run(name, body as AnyBody, inputs, outputs, attributes),
      ]),
    ) as KernelTable;
  }

  supports(
    operator: OperatorName,
    inputs: Readonly<Record<string, TensorSpec | undefined>>,
    attributes: unknown,
  ): true | string {
    this.check();
    if (!(operator in bodies)) return 'it has no kernel for it';
    for (const [name, spec] of Object.entries(inputs)) {
      const reason = spec && reasonAgainst(spec.dtype);
      if (reason) return `${reason}, and ${name} is ${spec.dtype}`;
    }
    const wanted = (attributes as { readonly dtype?: DType } | undefined)
      ?.dtype;
    const reason = wanted && reasonAgainst(wanted);
    return reason ? `${reason}, and ${wanted} is asked for` : true;
  }

  allocate(elements: number, dtype: DType): Storage {
    this.check();
    const reason = reasonAgainst(dtype);
    if (reason) throw new DTypeError(`allocate: ${reason}, got ${dtype}`);
    const memory = new Memory(elements, dtype);
    const { limitBytes = Number.POSITIVE_INFINITY } = this.options;
    if (this.bytesInUse + memory.bytes > limitBytes) {
      const limit = `the limit is ${limitBytes} bytes`;
      throw new OutOfMemoryError(memory.bytes, this.bytesInUse, limit);
    }
    this.live.add(memory);
    this.bytesInUse += memory.bytes;
    this.peakBytes = Math.max(this.peakBytes, this.bytesInUse);
    this.allocations += 1;
    return memory as Storage;
  }

  write(storage: Storage, data: HostArray, offset = 0): void {
    this.check();
    const memory = memoryOf(storage);
    const type = memory.dtype === 'i32' ? Int32Array : Float32Array;
    if (!(data instanceof type)) {
      throw new DTypeError(
        `write: data of ${memory.dtype} must be a ${type.name}, got ${data.constructor.name}`,
      );
    }
    checkRange('write', memory, offset, data.length);
    if (data.length === 0) return;
    // A copy: the caller may go on to change the array.
    const own = data.slice();
    memory.set(
      tf.tidy(() => spliced(memory, offset, tf.tensor1d(own, memory.type))),
      own.length === memory.elements ? own : undefined,
    );
  }

  async read(storage: Storage): Promise<HostArray> {
    this.check();
    const data = await memoryOf(storage).tensor.data();
    this.checkFailure();
    return data.slice() as Float32Array | Int32Array;
  }

  copy(
    source: Storage,
    sourceOffset: number,
    target: Storage,
    targetOffset: number,
    length: number,
  ): void {
    this.check();
    const from = memoryOf(source);
    const to = memoryOf(target);
    checkCopy(from, sourceOffset, to, targetOffset, length);
    if (length === 0) return;
    to.set(
      tf.tidy(() => {
        const flat = tf.reshape(from.tensor, [-1]);
        return spliced(to, targetOffset, tf.slice(flat, sourceOffset, length));
      }),
    );
  }

  /** Harmless after `destroy`, so that owners can clean up in any order. */
  free(storage: Storage): void {
    const memory = memoryOf(storage);
    if (!this.live.delete(memory)) return;
    this.bytesInUse -= memory.bytes;
    memory.free();
  }

  /** tfjs hands its work over by itself. */
  flush(): void {
    this.check();
  }

  /** Reads one element that waits for all before it. */
  async synchronize(): Promise<void> {
    this.check();
    const last = [...this.live].at(-1);
    if (!last || last.elements === 0) return;
    const element = tf.tidy(() =>
      tf.slice(tf.reshape(last.tensor, [-1]), 0, 1),
    );
    await element.data();
    element.dispose();
    this.checkFailure();
  }

  memory(): MemoryStatistics {
    this.check(false);
    const { bytesInUse, peakBytes, allocations } = this;
    return { bytesInUse, peakBytes, allocations };
  }

  /** Gives all tensors back, and the GPU where nobody else had it before. */
  async destroy(): Promise<void> {
    if (this.destroyed) return;
    for (const memory of this.live) this.free(memory as Storage);
    this.destroyed = true;
    this.options.release();
  }

  /** One operator; what its body names takes the place of what was there. */
  private run(
    name: string,
    body: AnyBody,
    inputs: Operands,
    outputs: Operands,
    attributes: unknown,
  ): void {
    this.check();
    const made = Object.values(outputs);
    if (made.length > 0 && made.every((tensor) => tensor?.size === 0)) return;
    const results = tf.tidy(() => {
      const views: Record<string, tf.Tensor> = {};
      for (const [operand, tensor] of Object.entries(inputs)) {
        if (tensor) views[operand] = viewOf(tensor);
      }
      const found: Record<string, tf.Tensor> = {};
      const written = (operand: string) => {
        const tensor = inputs[operand];
        return tensor && memoryOf(tensor.storage).written;
      };
      const values = body(views, attributes, outputs, written);
      for (const [operand, value] of Object.entries(values)) {
        // A clone: an operand that is handed through stays its owner's.
        if (value) found[operand] = tf.clone(value);
      }
      return found;
    });
    for (const [operand, value] of Object.entries(results)) {
      const target = outputs[operand] ?? inputs[operand];
      if (!target || target.size !== value.size) {
        throw new ArgumentError(
          `internal: ${name}: ${operand} has ${value.size} elements`,
        );
      }
      memoryOf(target.storage).set(value);
    }
  }

  private checkFailure(): void {
    const failure = this.options.failure();
    if (failure !== undefined) {
      throw new AsaError(`tfjs: a command failed, ${failure}`);
    }
  }

  /** tfjs has one backend at a time for the whole process. */
  private check(turn = true): void {
    if (this.destroyed) {
      throw new TensorStateError('tfjs: the backend was destroyed');
    }
    if (turn && tf.getBackend() !== this.engine) {
      // It was opened before: the change happens at once.
      void tf.setBackend(this.engine);
    }
  }
}

function reasonAgainst(dtype: DType): string | undefined {
  if (dtype === 'f32' || dtype === 'i32') return undefined;
  return `TensorFlow.js has no ${dtype}`;
}

/** The elements of a memory with others from `offset` on, `[n]`. */
function spliced(memory: Memory, offset: number, part: tf.Tensor): tf.Tensor {
  const end = offset + part.size;
  if (offset === 0 && end === memory.elements) return tf.clone(part);
  const flat = tf.reshape(memory.tensor, [-1]);
  return tf.concat([
    tf.slice(flat, 0, offset),
    part,
    tf.slice(flat, end, memory.elements - end),
  ]);
}
