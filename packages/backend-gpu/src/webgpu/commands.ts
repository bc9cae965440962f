import type { Launch } from './launch';
import type { Pipelines } from './pipelines';

/** Dispatches handed over at a time: the device starts while more are made. */
const BATCH = 128;

/** Collects commands and hands them to the device in batches. */
export class Commands {
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  private dispatches = 0;
  /** Number of the batch that is being collected. */
  batch = 0;
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
    this.pass ??= this.open().beginComputePass();
    this.pass.setPipeline(pipeline);
    this.pass.setBindGroup(0, bindGroup);
    this.pass.dispatchWorkgroups(x, y, z);
    this.dispatches += 1;
    if (this.dispatches >= BATCH) this.flush();
  }

  /** Offsets and length in bytes, multiples of 4. */
  copy(
    source: GPUBuffer,
    sourceOffset: number,
    target: GPUBuffer,
    targetOffset: number,
    bytes: number,
  ): void {
    this.endPass();
    this.open().copyBufferToBuffer(
      source,
      sourceOffset,
      target,
      targetOffset,
      bytes,
    );
  }

  clear(target: GPUBuffer, bytes: number): void {
    this.endPass();
    this.open().clearBuffer(target, 0, bytes);
  }

  flush(): void {
    if (!this.encoder) return;
    this.endPass();
    this.device.queue.submit([this.encoder.finish()]);
    this.encoder = undefined;
    this.dispatches = 0;
    this.batch += 1;
    this.onSubmit();
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
