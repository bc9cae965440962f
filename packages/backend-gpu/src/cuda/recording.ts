import type { Allocator, Arena } from './allocator';
import type { CudaGraphExec, CudaStream } from './bindings';
import type { Driver } from './driver';

/**
 * Launches that were captured once and run again as one. Each replay reads the
 * tensors that the recorded work read, with what they hold by then.
 */
export class Recording {
  private isFreed = false;

  constructor(
    private readonly driver: Driver,
    private readonly stream: CudaStream,
    private readonly allocator: Allocator,
    private readonly arena: Arena,
    private readonly graph: CudaGraphExec,
  ) {}

  /** Enqueues all of it. */
  replay(): void {
    this.driver.launchGraph(this.graph, this.stream);
  }

  /** Gives back what it kept; what was taken out of it lives on. */
  free(): void {
    if (this.isFreed) return;
    this.isFreed = true;
    this.driver.destroyGraph(this.graph);
    this.allocator.freeArena(this.arena);
  }
}

/** Captures what `body` enqueues on the stream; none of it runs yet. */
export function capture(
  driver: Driver,
  stream: CudaStream,
  allocator: Allocator,
  body: () => void,
): Recording {
  const arena = allocator.beginArena();
  driver.beginCapture(stream);
  try {
    body();
  } catch (error) {
    driver.abandonCapture(stream);
    allocator.endArena();
    allocator.freeArena(arena);
    throw error;
  }
  allocator.endArena();
  const graph = driver.endCapture(stream);
  return new Recording(driver, stream, allocator, arena, graph);
}
