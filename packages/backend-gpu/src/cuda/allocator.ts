import { OutOfMemoryError } from '@asa/core';
import { sizeClass } from '../size-class';
import type { CudaPointer } from './bindings';

/** Device memory that is handed out again and again. */
export interface Block {
  readonly pointer: CudaPointer;
  readonly bytes: number;
  /** The recording that keeps it for its replays. */
  arena?: Arena | undefined;
}

/** Blocks that a recording keeps: its replays write them again. */
export class Arena {
  readonly blocks = new Set<Block>();
  readonly idle = new IdleBlocks();
  /** For what the host writes: replays find it there, though it was freed. */
  readonly written = new Set<Block>();
  /** Those of them that were given back. */
  readonly resting: Block[] = [];
  isOpen = true;
}

/** What the allocator needs of the driver. */
export interface MemorySource {
  /** Memory, or nothing where there is no room. */
  allocate(bytes: number): CudaPointer | undefined;
  free(pointer: CudaPointer): void;
}

/**
 * Caches device memory by size. Work runs in the order of one stream, so a
 * block that is given back may be handed out while work on it still waits.
 */
export class Allocator {
  private readonly idle = new IdleBlocks();
  private readonly all = new Set<Block>();
  private arena: Arena | undefined;
  /** Bytes of all blocks, in use or idle. */
  bytes = 0;
  /** Blocks made since it was opened: a warm step makes none. */
  created = 0;

  constructor(
    private readonly source: MemorySource,
    private readonly limitBytes: number,
  ) {}

  /** @throws OutOfMemoryError past the limit or the device's memory. */
  take(bytes: number, inUse: number): Block {
    const size = sizeClass(bytes);
    const { arena } = this;
    const block =
      arena?.idle.take(size) ??
      this.idle.take(size) ??
      this.create(size, bytes, inUse);
    block.arena = arena;
    arena?.blocks.add(block);
    return block;
  }

  /**
   * As `take`, but no block that the open arena has handed out before, nor will
   * again.
   */
  takeFresh(bytes: number, inUse: number): Block {
    const size = sizeClass(bytes);
    const { arena } = this;
    const block = this.idle.take(size) ?? this.create(size, bytes, inUse);
    block.arena = arena;
    arena?.blocks.add(block);
    arena?.written.add(block);
    return block;
  }

  give(block: Block): void {
    if (!this.all.has(block)) return;
    const { arena } = block;
    if (!arena?.isOpen) this.idle.give(block);
    else if (arena.written.has(block)) arena.resting.push(block);
    else arena.idle.give(block);
  }

  /** What is taken until `endArena` stays with the arena until it is freed. */
  beginArena(): Arena {
    this.arena = new Arena();
    return this.arena;
  }

  endArena(): void {
    this.arena = undefined;
  }

  /** Idle blocks of the arena are free again; others when they are given. */
  freeArena(arena: Arena): void {
    arena.isOpen = false;
    for (const block of arena.idle.drain()) this.give(block);
    for (const block of arena.resting.splice(0)) this.give(block);
    for (const block of arena.blocks) block.arena = undefined;
    arena.blocks.clear();
  }

  /** Gives idle memory back to the device. */
  trim(): void {
    for (const block of this.idle.drain()) this.destroy(block);
  }

  destroyAll(): void {
    for (const block of this.all) this.destroy(block);
    this.idle.drain();
  }

  private create(size: number, asked: number, inUse: number): Block {
    if (this.bytes + size > this.limitBytes) this.trim();
    if (this.bytes + size > this.limitBytes) {
      const limit = `the limit is ${this.limitBytes} bytes`;
      throw new OutOfMemoryError(asked, inUse, limit);
    }
    const pointer = this.source.allocate(size) ?? this.retry(size);
    if (pointer === undefined) {
      throw new OutOfMemoryError(asked, inUse, 'the device has no more');
    }
    const block: Block = { pointer, bytes: size };
    this.all.add(block);
    this.bytes += size;
    this.created += 1;
    return block;
  }

  private retry(size: number): CudaPointer | undefined {
    this.trim();
    return this.source.allocate(size);
  }

  private destroy(block: Block): void {
    if (!this.all.delete(block)) return;
    this.source.free(block.pointer);
    this.bytes -= block.bytes;
  }
}

/** Blocks by size, the last one given first. */
class IdleBlocks {
  private readonly bySize = new Map<number, Block[]>();

  take(size: number): Block | undefined {
    return this.bySize.get(size)?.pop();
  }

  give(block: Block): void {
    const list = this.bySize.get(block.bytes);
    if (list) list.push(block);
    else this.bySize.set(block.bytes, [block]);
  }

  /** Empties it; returns what it held. */
  drain(): Block[] {
    const blocks = [...this.bySize.values()].flat();
    this.bySize.clear();
    return blocks;
  }
}
