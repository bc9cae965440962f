/** Where some uniforms lie. */
export interface UniformSlot {
  readonly id: number;
  readonly gpu: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

/** WebGPU promises that uniforms may start on multiples of this. */
const SLOT_BYTES = 256;
const SLOTS = 4096;

/**
 * Uniforms in slots of one buffer, each content once. A buffer for each would
 * cost the driver an allocation and a copy, thousands in a training step.
 */
export class UniformArena {
  private readonly slots = new Map<string, UniformSlot>();
  private readonly staged = new Uint8Array(SLOTS * SLOT_BYTES);
  private gpu: GPUBuffer | undefined;
  private used = 0;
  private uploaded = 0;
  private nextId = 1;

  constructor(private readonly device: GPUDevice) {}

  /** Whether all slots are taken. */
  get isFull(): boolean {
    return this.used === SLOTS;
  }

  /** The slot of these words, 64 at most; there must be one left. */
  slotOf(words: Uint32Array): UniformSlot {
    const key = words.join();
    let slot = this.slots.get(key);
    if (!slot) {
      this.gpu ??= this.device.createBuffer({
        size: SLOTS * SLOT_BYTES,
        usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
        label: 'uniforms',
      });
      const offset = this.used * SLOT_BYTES;
      const { gpu } = this;
      slot = { id: this.nextId++, gpu, offset, size: words.byteLength };
      this.staged.set(new Uint8Array(words.buffer), offset);
      this.used += 1;
      this.slots.set(key, slot);
    }
    return slot;
  }

  /** Before commands that read new slots are handed over. */
  upload(): void {
    if (!this.gpu || this.uploaded === this.used) return;
    const [start, end] = [this.uploaded, this.used];
    this.device.queue.writeBuffer(
      this.gpu,
      start * SLOT_BYTES,
      this.staged,
      start * SLOT_BYTES,
      (end - start) * SLOT_BYTES,
    );
    this.uploaded = end;
  }

  /**
   * Begins another buffer. Without `destroy`: commands that wait, and recorded
   * ones, still read the last one.
   */
  renew(): void {
    this.upload();
    this.slots.clear();
    this.gpu = undefined;
    this.used = 0;
    this.uploaded = 0;
  }

  destroy(): void {
    this.gpu?.destroy();
    this.slots.clear();
  }
}
