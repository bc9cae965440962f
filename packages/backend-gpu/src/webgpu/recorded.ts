import type { Recording } from '@asa/core';
import type { BufferPool, PooledBuffer, Reservation } from './buffers';
import type { Command, Commands } from './commands';
import type { Memory } from './memory';

/** Commands with their bind groups, and the memory behind these. */
export class Recorded implements Recording {
  readonly commands: Command[] = [];
  private readonly used = new Map<Memory, PooledBuffer>();
  private readonly reservation: Reservation;
  private isFreed = false;

  constructor(
    private readonly pool: BufferPool,
    private readonly queue: Commands,
    /** Called before commands are enqueued. @throws what stands against it. */
    private readonly check: () => void,
  ) {
    this.reservation = pool.beginReservation();
    queue.record = this.commands;
  }

  /** A command that is being recorded uses this. */
  use(memory: Memory): void {
    this.used.set(memory, memory.buffer);
  }

  /** Nothing more is recorded; what was freed until now is the recording's. */
  end(isLive: (memory: Memory) => boolean): void {
    this.pool.endReservation();
    this.queue.record = undefined;
    for (const memory of this.used.keys()) {
      if (!isLive(memory)) this.used.delete(memory);
    }
  }

  replay(): boolean {
    this.check();
    if (this.isFreed) return false;
    for (const [memory, buffer] of this.used) {
      if (!memory.lies(buffer)) return false;
    }
    this.queue.replay(this.commands);
    this.queue.flush();
    return true;
  }

  free(): void {
    if (this.isFreed) return;
    this.isFreed = true;
    this.pool.release(this.reservation);
    this.used.clear();
    this.commands.length = 0;
  }
}
