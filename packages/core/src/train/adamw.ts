import type { FloatType } from '../dtype';
import type { Model } from '../model/model';
import { modelParameters } from '../model/parameters';
import { adamw } from '../ops/adamw';
import { cast } from '../ops/cast';
import { statisticType } from '../ops/operator';
import { squaredNorm } from '../ops/squared-norm';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decoupled from the gradient, times the learning rate. */
  readonly weightDecay: number;
  /** Which parameters decay: matrices, not norms, biases and pooling weights. */
  readonly decay: 'matrices' | 'all';
  /** Largest global gradient norm; none when left out. */
  readonly clip?: number | undefined;
}

/**
 * AdamW over all parameters of a model, with f32 (f64) moments. A model of
 * 16-bit weights has f32 masters beside them, rounded into it at each step.
 * Source: arXiv 1711.05101; masters: arXiv 1710.03740.
 */
export class AdamW {
  /** What is trained: the model's own tensors, or their masters. */
  readonly masters: ReadonlyMap<string, Tensor>;
  readonly m: ReadonlyMap<string, Tensor>;
  readonly v: ReadonlyMap<string, Tensor>;
  private readonly decaying: ReadonlySet<string>;
  private readonly scope: Scope;

  constructor(
    private readonly model: Model,
    private readonly options: AdamWOptions,
  ) {
    this.scope = new Scope(model.backend);
    const wide = statisticType(model.dtype);
    const each = (make: (tensor: Tensor) => Tensor) =>
      new Map([...model.parameters].map(([name, t]) => [name, make(t)]));
    try {
      this.masters =
        model.dtype === wide
          ? model.parameters
          : each((x) => this.scope.run(cast, { x }, { dtype: wide }).y);
      this.m = each((tensor) => zeros(this.scope, tensor, wide));
      this.v = each((tensor) => zeros(this.scope, tensor, wide));
    } catch (error) {
      this.scope.free();
      throw error;
    }
    const isDecaying = ({ init }: { init: object }) =>
      options.decay === 'all' || 'normal' in init;
    this.decaying = new Set(
      modelParameters(model.config)
        .filter(isDecaying)
        .map(({ name }) => name),
    );
  }

  /** The squared global norm of gradients, `[1]`; the scope's. */
  squaredNorm(scope: Scope, gradients: ReadonlyMap<string, Tensor>): Tensor {
    const total = zeros(scope, { shape: [1] }, statisticType(this.model.dtype));
    const calls = [...gradients.values()].map((x) => ({
      inputs: { x, total },
      attributes: {},
    }));
    scope.runMany(squaredNorm, calls);
    return total;
  }

  /**
   * Prepares one step, which happens when the result is called: the device need
   * not wait for the host. Gradients are of the masters' type or of the model's.
   * @param step counts from 1.
   * @param norm what `squaredNorm` gave.
   * @param lossScale what gradients and norm are multiplied with.
   */
  prepareUpdate(
    gradients: ReadonlyMap<string, Tensor>,
    norm: Tensor,
    {
      step,
      learningRate,
      lossScale,
    }: { step: number; learningRate: number; lossScale?: number },
  ): () => void {
    const scope = new Scope(this.model.backend);
    const { decay: _, weightDecay, ...constants } = this.options;
    const { parameters } = this.model;
    const hasMasters = this.masters !== parameters;
    const calls = [...gradients].flatMap(([name, gradient]) => {
      const parameter = this.masters.get(name);
      const [m, v] = [this.m.get(name), this.v.get(name)];
      if (!parameter || !m || !v) return [];
      const rounded = hasMasters ? parameters.get(name) : undefined;
      return {
        inputs: { parameter, gradient, m, v, rounded, squaredNorm: norm },
        attributes: {
          ...constants,
          step,
          learningRate,
          lossScale,
          weightDecay: this.decaying.has(name) ? weightDecay : 0,
        },
      };
    });
    return scope.prepareMany(adamw, calls);
  }

  /** Rounds the masters into a 16-bit model; nothing to do for others. */
  roundMasters(): void {
    const { backend, dtype, parameters } = this.model;
    if (this.masters === parameters) return;
    for (const [name, target] of parameters) {
      const x = this.masters.get(name);
      if (!x) continue;
      const scope = new Scope(backend);
      const { y } = scope.run(cast, { x }, { dtype });
      backend.copy(y.storage, 0, target.storage, 0, y.size);
      scope.free();
    }
  }

  /** Frees moments and masters; the model stays. */
  free(): void {
    this.scope.free();
  }
}

function zeros(
  scope: Scope,
  { shape }: Pick<Tensor, 'shape'>,
  dtype: FloatType,
): Tensor {
  const tensor = scope.empty(shape, dtype);
  const data =
    dtype === 'f64'
      ? new Float64Array(tensor.size)
      : new Float32Array(tensor.size);
  tensor.backend.write(tensor.storage, data);
  return tensor;
}
