import { OutOfMemoryError } from '@asa/core';
import { describe, expect, it } from 'vitest';
import {
  Allocator,
  type MemorySource,
} from '../../../../packages/backend-gpu/src/cuda/allocator';
import type { CudaPointer } from '../../../../packages/backend-gpu/src/cuda/bindings';
import { sizeClass } from '../../../../packages/backend-gpu/src/size-class';

/** A device of so many bytes. */
class FakeMemory implements MemorySource {
  readonly live = new Map<number, number>();
  private next = 0x1000;

  constructor(private readonly capacity = Number.POSITIVE_INFINITY) {}

  get bytes(): number {
    return [...this.live.values()].reduce((sum, size) => sum + size, 0);
  }

  allocate(bytes: number): CudaPointer | undefined {
    if (this.bytes + bytes > this.capacity) return undefined;
    const pointer = this.next;
    this.next += bytes;
    this.live.set(pointer, bytes);
    return pointer as CudaPointer;
  }

  free(pointer: CudaPointer): void {
    if (!this.live.delete(pointer)) throw new Error(`freed twice: ${pointer}`);
  }
}

const unlimited = Number.POSITIVE_INFINITY;

describe('the allocator', () => {
  it('hands a block out again to requests of its size class', () => {
    const memory = new FakeMemory();
    const allocator = new Allocator(memory, unlimited);
    const first = allocator.take(1000, 0);
    expect(first.bytes).toBe(sizeClass(1000));
    allocator.give(first);
    expect(allocator.take(1024, 0)).toBe(first);
    expect(allocator.take(1024, 0)).not.toBe(first);
    expect(allocator.created).toBe(2);
    expect(allocator.bytes).toBe(memory.bytes);
  });

  it('wastes a quarter at most', () => {
    for (let bytes = 257; bytes < 1e6; bytes = Math.ceil(bytes * 1.07)) {
      const size = sizeClass(bytes);
      expect(size).toBeGreaterThanOrEqual(bytes);
      expect(size).toBeLessThanOrEqual(bytes * 1.25 + 4);
      expect(sizeClass(size)).toBe(size);
    }
    expect(sizeClass(0)).toBe(256);
  });

  it('gives idle memory back before it fails at the limit', () => {
    const memory = new FakeMemory();
    const allocator = new Allocator(memory, 4096);
    allocator.give(allocator.take(2048, 0));
    const large = allocator.take(4096, 0);
    expect(memory.live.size).toBe(1);
    const more = () => allocator.take(300, 4000);
    expect(more).toThrow(OutOfMemoryError);
    expect(more).toThrow('no memory for 300 bytes, 4000 bytes are in use');
    allocator.give(large);
    expect(allocator.take(300, 0).bytes).toBe(sizeClass(300));
  });

  it('gives idle memory back before it fails at the device', () => {
    const memory = new FakeMemory(4096);
    const allocator = new Allocator(memory, unlimited);
    allocator.give(allocator.take(2048, 0));
    allocator.take(4096, 0);
    expect(memory.bytes).toBe(4096);
    expect(() => allocator.take(256, 0)).toThrow('the device has no more');
  });

  it('frees each block once when it is destroyed', () => {
    const memory = new FakeMemory();
    const allocator = new Allocator(memory, unlimited);
    const [idle, live] = [allocator.take(10, 0), allocator.take(10, 0)];
    allocator.give(idle);
    allocator.destroyAll();
    expect(memory.live.size).toBe(0);
    allocator.give(live);
    expect(allocator.bytes).toBe(0);
  });
});

describe('an arena', () => {
  it('keeps what is given back while it is open, for itself alone', () => {
    const allocator = new Allocator(new FakeMemory(), unlimited);
    const arena = allocator.beginArena();
    const inside = allocator.take(512, 0);
    allocator.give(inside);
    expect(allocator.take(512, 0)).toBe(inside);
    allocator.give(inside);
    allocator.endArena();
    expect(allocator.take(512, 0)).not.toBe(inside);
    allocator.freeArena(arena);
    expect(allocator.take(512, 0)).toBe(inside);
  });

  it('lets what was taken out of it live on', () => {
    const allocator = new Allocator(new FakeMemory(), unlimited);
    const arena = allocator.beginArena();
    const result = allocator.take(512, 0);
    allocator.endArena();
    allocator.freeArena(arena);
    expect(allocator.take(512, 0)).not.toBe(result);
    allocator.give(result);
    expect(allocator.take(512, 0)).toBe(result);
  });

  it('keeps a result for its replays after it is freed', () => {
    const allocator = new Allocator(new FakeMemory(), unlimited);
    const arena = allocator.beginArena();
    const result = allocator.take(512, 0);
    allocator.endArena();
    allocator.give(result);
    expect(allocator.take(512, 0)).not.toBe(result);
    allocator.freeArena(arena);
    expect(allocator.take(512, 0)).toBe(result);
  });
});
