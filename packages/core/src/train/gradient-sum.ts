import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { add } from '../ops/add';
import { cast } from '../ops/cast';
import { statisticType } from '../ops/operator';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { freeAll, type Gradients } from './loss';

/**
 * A running sum of gradients in f32 (f64), in the order in which they come; a
 * first one that nothing follows stays as it is.
 */
export class GradientSum {
  private readonly sums: Gradients = new Map();
  /** Names whose tensors are another one's. */
  private readonly borrowed = new Set<string>();

  constructor(private readonly backend: Backend) {}

  /** The sums so far; they stay its own. */
  get tensors(): ReadonlyMap<string, Tensor> {
    return this.sums;
  }

  /** Takes gradients over: they end in the sum or are freed. */
  add(gradients: Gradients): void {
    try {
      for (const [name, gradient] of gradients) {
        const before = this.sums.get(name);
        if (before) {
          this.addTo(name, before, gradient);
          gradient.free();
        } else {
          this.sums.set(name, gradient);
        }
      }
    } catch (error) {
      for (const [name, gradient] of gradients) {
        if (this.sums.get(name) !== gradient) gradient.free();
      }
      throw error;
    }
  }

  /**
   * Adds gradients that stay their owner's.
   * @param isLast they are as they are until the sum is emptied.
   */
  addBorrowed(gradients: ReadonlyMap<string, Tensor>, isLast: boolean): void {
    for (const [name, gradient] of gradients) {
      const before = this.sums.get(name);
      if (before) {
        this.addTo(name, before, gradient);
      } else if (isLast) {
        this.sums.set(name, gradient);
        this.borrowed.add(name);
      } else {
        this.sums.set(name, this.copyOf(gradient));
      }
    }
  }

  /** Frees what it has. */
  empty(): void {
    for (const name of this.borrowed) this.sums.delete(name);
    this.borrowed.clear();
    freeAll(this.sums);
    this.sums.clear();
  }

  private addTo(name: string, before: Tensor, gradient: Tensor): void {
    const scope = new Scope(this.backend);
    try {
      const [a, b] = [widen(scope, before), widen(scope, gradient)];
      this.sums.set(name, scope.keep(scope.run(add, { a, b }, {}).y));
      if (!this.borrowed.delete(name)) before.free();
    } finally {
      scope.free();
    }
  }

  /** In the type of sums. */
  private copyOf(gradient: Tensor): Tensor {
    const scope = new Scope(this.backend);
    try {
      const wide = widen(scope, gradient);
      return scope.keep(wide === gradient ? scope.copyOf(gradient) : wide);
    } finally {
      scope.free();
    }
  }
}

function widen(scope: Scope, gradient: Tensor): Tensor {
  const dtype = statisticType(gradient.dtype as FloatType);
  if (gradient.dtype === dtype) return gradient;
  return scope.run(cast, { x: gradient }, { dtype }).y;
}
