import type { Launch } from './launch';
import type { Pipelines } from './pipelines';

/** Dispatches handed over at a time: the device starts while more are made. */
const BATCH = 128;

interface Dispatch {
  readonly kind: 'dispatch';
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly x: number;
  readonly y: number;
  readonly z: number;
}

/** Offsets and length in bytes, multiples of 4. */
interface Copy {
  readonly kind: 'copy';
  readonly source: GPUBuffer;
  readonly sourceOffset: number;
  readonly target: GPUBuffer;
  readonly targetOffset: number;
  readonly bytes: number;
}

interface Clear {
  readonly kind: 'clear';
  readonly target: GPUBuffer;
  readonly bytes: number;
}

/** What an encoder is told, with nothing left to look up. */
export type Command = Dispatch | Copy | Clear;

/** Collects commands and hands them to the device in batches. */
export class Commands {
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  private dispatches = 0;
  /** Number of the batch that is being collected. */
  batch = 0;
  /** Takes a copy of every command while it is set. */
  record: Command[] | undefined;
  /** Called when a batch was handed over. */
  onSubmit: () => void = () => {};

  constructor(
    private readonly device: GPUDevice,
    private readonly pipelines: Pipelines,
  ) {}

  dispatch(launch: Launch): void {
    const [x, y = 1, z = 1] = launch.grid;
    if (x * y * z === 0) return;
    const { pipeline, bindGroup } = this.pipelines.prepare(launch);
    this.add({ kind: 'dispatch', pipeline, bindGroup, x, y, z });
  }

  copy(copy: Omit<Copy, 'kind'>): void {
    this.add({ kind: 'copy', ...copy });
  }

  clear(target: GPUBuffer, bytes: number): void {
    this.add({ kind: 'clear', target, bytes });
  }

  /** Enqueues recorded commands again, to be handed over together. */
  replay(commands: readonly Command[]): void {
    for (const command of commands) this.encode(command);
  }

  flush(): void {
    if (!this.encoder) return;
    this.endPass();
    this.pipelines.upload();
    this.device.queue.submit([this.encoder.finish()]);
    this.encoder = undefined;
    this.dispatches = 0;
    this.batch += 1;
    this.onSubmit();
  }

  private add(command: Command): void {
    this.record?.push(command);
    this.encode(command);
    if (this.dispatches >= BATCH) this.flush();
  }

  private encode(command: Command): void {
    if (command.kind === 'dispatch') {
      this.pass ??= this.open().beginComputePass();
      this.pass.setPipeline(command.pipeline);
      this.pass.setBindGroup(0, command.bindGroup);
      this.pass.dispatchWorkgroups(command.x, command.y, command.z);
      this.dispatches += 1;
      return;
    }
    this.endPass();
    if (command.kind === 'clear') {
      this.open().clearBuffer(command.target, 0, command.bytes);
      return;
    }
    const { source, sourceOffset, target, targetOffset, bytes } = command;
    this.open().copyBufferToBuffer(
      source,
      sourceOffset,
      target,
      targetOffset,
      bytes,
    );
  }

  private open(): GPUCommandEncoder {
    this.encoder ??= this.device.createCommandEncoder();
    return this.encoder;
  }

  private endPass(): void {
    this.pass?.end();
    this.pass = undefined;
  }
}
