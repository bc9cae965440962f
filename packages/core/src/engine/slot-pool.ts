import type { Cache } from '../model/cache';
import type { Steps } from './steps';

/** The slots of one cache. The cache is freed with the last of them. */
export class SlotPool {
  private readonly vacant: number[];

  constructor(
    readonly cache: Cache,
    readonly steps: Steps,
    private readonly onFree: (pool: SlotPool) => void,
  ) {
    this.vacant = Array.from({ length: cache.slots }, (_, slot) => slot);
  }

  get isFull(): boolean {
    return this.vacant.length === 0;
  }

  /** A slot that nobody uses, the lowest first. */
  acquire(): number | undefined {
    return this.vacant.shift();
  }

  release(slot: number): void {
    this.vacant.push(slot);
    if (this.vacant.length === this.cache.slots) this.free();
  }

  free(): void {
    this.steps.free();
    this.cache.free();
    this.onFree(this);
  }

  /** Bytes of one slot. */
  get bytesPerSlot(): number {
    const { tokens, blocks, leaders, states } = this.cache.bytes;
    return (tokens + blocks + leaders + states) / this.cache.slots;
  }
}
