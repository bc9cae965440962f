import type { Backend, MemoryStatistics, Storage } from '../backend';
import type { DType, HostArray } from '../dtype';
import { type KernelTable, type OperatorName, operators } from '../ops';
import type { Tensor } from '../tensor';
import { addCosts, type Cost, costOf, noCost } from './cost';

/** What `CountingBackend` hands out: no memory, only its size. */
interface Counted {
  readonly elements: number;
  readonly dtype: DType;
}

/**
 * Computes nothing and adds up what the operators that run on it cost: the same
 * code that a real backend runs tells what a layer, a model or a training step
 * has to do. Everything read is 0.
 */
export class CountingBackend implements Backend {
  readonly name = 'counting';
  readonly description = 'counts, computes nothing';
  readonly kernels: KernelTable;
  private total = noCost;

  constructor() {
    this.kernels = Object.fromEntries(
      Object.keys(operators).map((name) => [
        name,
        (
          inputs: Readonly<Record<string, Tensor | undefined>>,
          outputs: Readonly<Record<string, Tensor | undefined>>,
          attributes: unknown,
        ) => {
          const call = { inputs, outputs, attributes };
          const cost = costOf(name as OperatorName, call);
          this.total = addCosts(this.total, cost);
        },
      ]),
    ) as unknown as KernelTable;
  }

  /** The cost of everything since the last time it was asked. */
  takeCost(): Cost {
    const cost = this.total;
    this.total = noCost;
    return cost;
  }

  supports(): true {
    return true;
  }
  allocate(elements: number, dtype: DType): Storage {
    return { elements, dtype } as Storage;
  }
  async read(storage: Storage): Promise<HostArray> {
    const { elements, dtype } = storage as unknown as Counted;
    return new arrayTypes[dtype](elements);
  }
  write(): void {}
  copy(): void {}
  free(): void {}
  flush(): void {}
  async synchronize(): Promise<void> {}
  memory(): MemoryStatistics {
    return { bytesInUse: 0, peakBytes: 0, allocations: 0 };
  }
  async destroy(): Promise<void> {}
}

const arrayTypes = {
  f64: Float64Array,
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
} as const;
