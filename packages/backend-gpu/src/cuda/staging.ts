import { setImmediate, setTimeout } from 'node:timers/promises';
import { sizeClass } from '../size-class';
import {
  bytesAt,
  type CudaEvent,
  type CudaStream,
  type HostPointer,
} from './bindings';
import type { Driver } from './driver';

/** Bytes that travel at a time. */
const CHUNK = 2 ** 24;
/** Bytes of copies to the device that may wait at a time. */
const MOST_WAITING = 4 * CHUNK;
/**
 * Milliseconds of asking again at once; later there are pauses of one, which
 * would add 2 % to what takes as long as this.
 */
const EAGER = 50;

/** Host memory that the device copies by itself. */
interface Pinned {
  readonly address: HostPointer;
  readonly bytes: Uint8Array;
  /** Behind the last copy that uses it. */
  readonly event: CudaEvent;
}

/** Copies between JavaScript's memory and the device's, by way of pinned memory. */
export class Staging {
  private readonly idle: Pinned[] = [];
  /** Copies to the device that may not be done yet, the oldest first. */
  private readonly waiting: Pinned[] = [];

  constructor(
    private readonly driver: Driver,
    private readonly stream: CudaStream,
  ) {}

  /** Enqueues a copy; `data` may change as soon as this returns. */
  write(target: number, data: Uint8Array, stream = this.stream): void {
    for (let start = 0; start < data.length; start += CHUNK) {
      const part = data.subarray(start, start + CHUNK);
      const pinned = this.take(part.length);
      pinned.bytes.set(part);
      const { driver } = this;
      driver.copyToDevice(target + start, pinned.address, part.length, stream);
      driver.record(pinned.event, stream);
      this.waiting.push(pinned);
    }
  }

  /** Copies to `data` what the device's memory holds behind all work so far. */
  async read(source: number, data: Uint8Array): Promise<void> {
    const { driver, stream } = this;
    for (let start = 0; start < data.length; start += CHUNK) {
      const part = data.subarray(start, start + CHUNK);
      const pinned = this.take(part.length);
      driver.copyToHost(pinned.address, source + start, part.length, stream);
      driver.record(pinned.event, stream);
      await this.passed(pinned.event);
      part.set(pinned.bytes.subarray(0, part.length));
      this.idle.push(pinned);
    }
  }

  /** Waits for all work so far; the event loop goes on. */
  async drain(): Promise<void> {
    const pinned = this.take(1);
    this.driver.record(pinned.event, this.stream);
    await this.passed(pinned.event);
    this.idle.push(pinned);
  }

  destroy(): void {
    for (const pinned of [...this.idle.splice(0), ...this.waiting.splice(0)]) {
      this.driver.destroyEvent(pinned.event);
      this.driver.freeHost(pinned.address);
    }
  }

  private async passed(event: CudaEvent): Promise<void> {
    const start = performance.now();
    while (!this.driver.isPassed(event)) {
      if (performance.now() - start < EAGER) await setImmediate();
      else await setTimeout(1);
    }
  }

  private take(bytes: number): Pinned {
    this.collect();
    const size = sizeClass(bytes);
    const index = this.idle.findIndex((pinned) => pinned.bytes.length === size);
    const [found] = index < 0 ? [] : this.idle.splice(index, 1);
    return found ?? this.create(size);
  }

  private create(size: number): Pinned {
    const address = this.driver.allocateHost(size);
    const bytes = bytesAt(address, size);
    return { address, bytes, event: this.driver.createEvent() };
  }

  /** Takes back what the device is done with; waits where too much is not. */
  private collect(): void {
    const { driver, waiting } = this;
    let bytes = 0;
    for (const pinned of waiting) bytes += pinned.bytes.length;
    while (waiting[0]) {
      const [oldest] = waiting;
      if (bytes > MOST_WAITING) driver.waitFor(oldest.event);
      else if (!driver.isPassed(oldest.event)) return;
      waiting.shift();
      bytes -= oldest.bytes.length;
      this.idle.push(oldest);
    }
  }
}
