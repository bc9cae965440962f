import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { ArgumentError } from '../errors';
import { block } from '../layers/block';
import { type LayerContext, linear, norm } from '../layers/context';
import { partOf, weightsFrom } from '../layers/parameters';
import { gatherRows } from '../ops/gather-rows';
import { statisticType } from '../ops/operator';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { Batch, type BatchPart } from './batch';
import type { Cache } from './cache';
import {
  type AttentionConfig,
  layerAttention,
  type ModelConfig,
} from './config';
import type { Parameters } from './parameters';
import { NoPast } from './past';
import { ropeFrequencies, rotations } from './rope';

export interface ForwardOptions {
  /** The past of each part, and its slot there; without it nothing lies before. */
  readonly cache?: { readonly cache: Cache; readonly slots: readonly number[] };
  /** Latent layers: the form that is cheaper (default), or one of the two. */
  readonly form?: LayerContext['form'];
  /** Called behind each layer: progress, and looking at hidden states. */
  readonly onLayer?: (layer: number, hidden: Tensor) => void;
}

/** A configuration with its parameters on a backend. */
export class Model {
  readonly dtype: FloatType;
  private readonly attention: readonly AttentionConfig[];
  private readonly frequencies = new Map<number, Tensor>();
  private readonly scope: Scope;

  constructor(
    readonly backend: Backend,
    readonly config: ModelConfig,
    readonly parameters: Parameters,
  ) {
    this.attention = layerAttention(config);
    this.scope = new Scope(backend);
    const dtype = this.weight('model.embed_tokens.weight').dtype;
    if (dtype === 'i32') throw new ArgumentError('model: weights must be real');
    this.dtype = dtype;
  }

  /**
   * Checks tokens and lays them out for `forward`.
   * @throws ArgumentError for a token beyond the vocabulary.
   */
  batch(parts: readonly BatchPart[]): Batch {
    for (const { tokens } of parts) this.checkTokens(tokens);
    return new Batch(this.backend, parts);
  }

  /** @throws ArgumentError for a token beyond the vocabulary. */
  checkTokens(tokens: ArrayLike<number>): void {
    const { vocabularySize } = this.config;
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens[i] ?? -1;
      if (!(Number.isInteger(token) && token >= 0 && token < vocabularySize)) {
        throw new ArgumentError(
          `model: a token must be an integer from 0 to ${vocabularySize - 1}, got ${tokens[i]}`,
        );
      }
    }
  }

  /** Hidden states behind the last norm, `[N, hidden]`, for every token. */
  forward(scope: Scope, batch: Batch, options: ForwardOptions = {}): Tensor {
    const weights = weightsFrom(this.parameters);
    const table = weights('model.embed_tokens.weight');
    let x = scope.run(gatherRows, { x: table, rows: batch.ids }, {}).y;
    const fresh = new NoPast(batch);
    this.attention.forEach((attention, layer) => {
      const part = partOf(weights, `model.layers.${layer}`);
      x = scope.within((inner) => {
        const { cache } = options;
        const past = cache
          ? cache.cache.past(layer, inner, batch, cache.slots)
          : fresh;
        return block(
          this.context(inner, batch, past, options.form),
          x,
          part,
          attention,
        );
      });
      options.onLayer?.(layer, x);
    });
    const context = this.context(scope, batch, fresh);
    return norm(context, x, weights('model.norm.weight'));
  }

  /** Logits `[N, V]` of hidden states `[N, hidden]`. */
  logits(scope: Scope, hidden: Tensor): Tensor {
    const head = this.config.tieEmbeddings
      ? 'model.embed_tokens.weight'
      : 'lm_head.weight';
    return linear({ scope }, hidden, this.weight(head));
  }

  /** Frees the parameters and everything else the model holds. */
  free(): void {
    for (const tensor of this.parameters.values()) tensor.free();
    this.scope.free();
    this.frequencies.clear();
  }

  private weight(name: string): Tensor {
    return weightsFrom(this.parameters)(name);
  }

  private context(
    scope: Scope,
    batch: Batch,
    past: LayerContext['past'],
    form: LayerContext['form'] = 'auto',
  ): LayerContext {
    const positions = batch.indices('positions', () => batch.positions);
    return {
      scope,
      past,
      positions,
      form,
      normEps: this.config.normEps,
      ...rotations(scope, this.config.rope.style, positions, (width) =>
        this.frequenciesOf(width),
      ),
    };
  }

  private frequenciesOf(width: number): Tensor {
    let tensor = this.frequencies.get(width);
    if (!tensor) {
      const values = ropeFrequencies(this.config.rope, width);
      const dtype = statisticType(this.dtype);
      const data = dtype === 'f64' ? values : Float32Array.from(values);
      tensor = this.scope.tensor(data, [width / 2], dtype);
      this.frequencies.set(width, tensor);
    }
    return tensor;
  }
}
