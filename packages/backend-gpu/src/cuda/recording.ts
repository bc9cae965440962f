import { OutOfMemoryError, type Recording } from '@asa/core';
import type { Allocator, Arena, Block } from './allocator';
import type { CudaEvent, CudaGraphExec, CudaStream } from './bindings';
import type { Driver } from './driver';
import { giveBack } from './give-back';
import type { Memory } from './memory';

/**
 * Launches that are captured once and run again as one graph. Nothing runs
 * while they are captured, so what the host writes meanwhile goes by another
 * stream: behind all work before the capture, and before its first run.
 */
export class Recorded implements Recording {
  /** For copies from the host while launches are captured. */
  readonly hostStream: CudaStream;
  private readonly arena: Arena;
  private readonly event: CudaEvent;
  /** Memory that the launches use, and where it lay. */
  private readonly used = new Map<Memory, Block>();
  private graph: CudaGraphExec | undefined;
  private isFreed = false;

  constructor(
    private readonly driver: Driver,
    private readonly stream: CudaStream,
    private readonly allocator: Allocator,
    private readonly owner: {
      /** Called before launches are enqueued. @throws what stands against it. */
      check(): void;
      /** It is freed. */
      forget(recorded: Recorded): void;
    },
  ) {
    this.event = driver.createEvent();
    this.hostStream = driver.createStream();
    driver.record(this.event, stream);
    driver.makeWait(this.hostStream, this.event);
    this.arena = allocator.beginArena();
    driver.beginCapture(stream);
  }

  /** A launch that is being captured uses this. */
  use(memory: Memory): void {
    this.used.set(memory, memory.block);
  }

  /**
   * Memory that the host is about to write. Launches may have used its block
   * before, and every run repeats them: it gets one that none of them knows.
   */
  makeFresh(memory: Memory, inUse: number): void {
    if (this.used.has(memory)) return;
    const fresh = this.allocator.takeFresh(memory.bytes, inUse);
    this.allocator.give(memory.exchange(fresh));
  }

  /**
   * Ends the capture and runs it once.
   * @throws OutOfMemoryError where the driver has none for the graph.
   */
  end(isLive: (memory: Memory) => boolean, inUse: number): void {
    const { driver, stream } = this;
    this.allocator.endArena();
    // What was freed until now is the recording's.
    for (const memory of this.used.keys()) {
      if (!isLive(memory)) this.used.delete(memory);
    }
    this.graph = driver.endCapture(stream);
    if (this.graph === undefined) {
      throw new OutOfMemoryError(0, inUse, 'the driver has none for a graph');
    }
    this.awaitHost();
    driver.launchGraph(this.graph, stream);
  }

  /** Ends the capture and drops it. */
  abandon(): void {
    this.allocator.endArena();
    this.driver.abandonCapture(this.stream);
    // Others get the memory that the host was writing.
    this.awaitHost();
    this.free();
  }

  replay(): boolean {
    this.owner.check();
    if (this.isFreed || this.graph === undefined) return false;
    for (const [memory, block] of this.used) {
      if (!memory.lies(block)) return false;
    }
    this.driver.launchGraph(this.graph, this.stream);
    return true;
  }

  /** Harmless once the device is lost, as giving back memory is. */
  free(): void {
    if (this.isFreed) return;
    this.isFreed = true;
    this.owner.forget(this);
    this.allocator.freeArena(this.arena);
    this.used.clear();
    const { driver, graph } = this;
    giveBack([
      () => graph !== undefined && driver.destroyGraph(graph),
      () => driver.destroyEvent(this.event),
      () => driver.destroyStream(this.hostStream),
    ]);
  }

  /** What is enqueued from now on runs behind what the host has written. */
  private awaitHost(): void {
    const { driver, event, hostStream, stream } = this;
    driver.record(event, hostStream);
    driver.makeWait(stream, event);
  }
}
