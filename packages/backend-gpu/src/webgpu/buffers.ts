import { OutOfMemoryError } from '@asa/core';
import { roundUp, sizeClass } from '../size-class';

/** A device buffer that the pool hands out again and again. */
export interface PooledBuffer {
  readonly gpu: GPUBuffer;
  /** Names the buffer in the keys of cached bind groups. */
  readonly id: number;
  readonly bytes: number;
  /** The batch of commands that last touched it. */
  batch: number;
  /** Whose commands use it again: it is not handed out meanwhile. */
  holder: Reservation | undefined;
}

/**
 * The buffers that were taken while commands were recorded. None is handed out
 * twice: what the host writes before a replay must survive the commands that
 * come before its use.
 */
export class Reservation {
  readonly buffers = new Set<PooledBuffer>();
  /** Those that their owners gave back. */
  readonly given = new Set<PooledBuffer>();
}

/**
 * Device buffers by size. Commands run in order, so a buffer that is given
 * back may be handed out again while commands on it still wait. The oldest one
 * goes first: steps that do the same get the same buffers, in whatever order
 * they were given back, and so find their bind groups again.
 */
export class BufferPool {
  /** By size, the oldest last. */
  private readonly idle = new Map<number, PooledBuffer[]>();
  private readonly all = new Set<PooledBuffer>();
  private nextId = 1;
  private reservation: Reservation | undefined;
  /** Bytes of all buffers, in use or idle. */
  bytes = 0;
  /** Buffers made since the pool was opened: what a warm step must not do. */
  created = 0;

  constructor(
    private readonly device: GPUDevice,
    private readonly limitBytes: number,
    private readonly onDestroy: (buffer: PooledBuffer) => void,
    private readonly report: (problem: Promise<Error | undefined>) => void,
  ) {}

  /** Buffers taken until `endReservation` are held. */
  beginReservation(): Reservation {
    this.reservation = new Reservation();
    return this.reservation;
  }

  endReservation(): void {
    this.reservation = undefined;
  }

  /** The commands will not run again. */
  release(reservation: Reservation): void {
    for (const buffer of reservation.buffers) buffer.holder = undefined;
    for (const buffer of reservation.given) this.give(buffer);
    reservation.buffers.clear();
    reservation.given.clear();
  }

  /** @throws OutOfMemoryError past the limit or the largest buffer. */
  take(bytes: number, inUse: number): PooledBuffer {
    const buffer = this.find(bytes, inUse);
    buffer.holder = this.reservation;
    this.reservation?.buffers.add(buffer);
    return buffer;
  }

  private find(bytes: number, inUse: number): PooledBuffer {
    const size = sizeClass(bytes);
    const found = this.idle.get(size)?.pop();
    if (found) return found;
    const { maxBufferSize } = this.device.limits;
    // A class may lie past the largest buffer while the request does not.
    const exact = size > maxBufferSize ? roundUp(bytes, 4) : size;
    if (exact > maxBufferSize) {
      const largest = `the device's largest buffer has ${maxBufferSize}`;
      throw new OutOfMemoryError(bytes, inUse, largest);
    }
    if (this.bytes + exact > this.limitBytes) this.trim();
    if (this.bytes + exact > this.limitBytes) {
      const limit = `the limit is ${this.limitBytes} bytes`;
      throw new OutOfMemoryError(bytes, inUse, limit);
    }
    return this.create(exact, inUse);
  }

  give(buffer: PooledBuffer): void {
    if (!this.all.has(buffer)) return;
    if (buffer.holder) {
      buffer.holder.given.add(buffer);
      return;
    }
    const list = this.idle.get(buffer.bytes) ?? [];
    let place = list.length;
    while (place > 0 && (list[place - 1]?.id ?? 0) < buffer.id) place -= 1;
    list.splice(place, 0, buffer);
    this.idle.set(buffer.bytes, list);
  }

  /** Destroys what is idle. Commands that were handed over still run. */
  trim(): void {
    for (const buffer of [...this.idle.values()].flat()) this.destroy(buffer);
    this.idle.clear();
  }

  destroyAll(): void {
    for (const buffer of this.all) this.destroy(buffer);
    this.idle.clear();
  }

  private create(bytes: number, inUse: number): PooledBuffer {
    // A scope of its own: the error can name what was asked for.
    this.device.pushErrorScope('out-of-memory');
    const gpu = this.device.createBuffer({
      size: bytes,
      usage:
        GPUBufferUsage.STORAGE |
        GPUBufferUsage.COPY_SRC |
        GPUBufferUsage.COPY_DST,
    });
    const id = this.nextId++;
    const failure = this.device.popErrorScope();
    this.report(
      failure.then((error) =>
        error ? new OutOfMemoryError(bytes, inUse, error.message) : undefined,
      ),
    );
    const buffer = { gpu, id, bytes, batch: -1, holder: undefined };
    this.all.add(buffer);
    this.bytes += bytes;
    this.created += 1;
    return buffer;
  }

  private destroy(buffer: PooledBuffer): void {
    if (!this.all.delete(buffer)) return;
    this.onDestroy(buffer);
    buffer.gpu.destroy();
    this.bytes -= buffer.bytes;
  }
}
