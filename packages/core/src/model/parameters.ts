import type { Backend } from '../backend';
import type { FloatType, HostArray } from '../dtype';
import { f32ToBf16, f32ToF16 } from '../half';
import { blockParameters } from '../layers/block';
import {
  constant,
  matrix,
  type ParameterSpec,
  within,
} from '../layers/parameters';
import { Random } from '../random';
import { Scope } from '../scope';
import { sizeOf, type Tensor } from '../tensor';
import { layerAttention, type ModelConfig } from './config';

/** Every learned tensor of a model, in a fixed order. */
export function modelParameters(config: ModelConfig): ParameterSpec[] {
  const { vocabularySize, hiddenSize } = config;
  return [
    matrix('model.embed_tokens.weight', vocabularySize, hiddenSize),
    ...layerAttention(config).flatMap((attention, layer) =>
      within(`model.layers.${layer}`, blockParameters(attention, config)),
    ),
    constant('model.norm.weight', [hiddenSize], 1),
    ...(config.tieEmbeddings
      ? []
      : [matrix('lm_head.weight', vocabularySize, hiddenSize)]),
  ];
}

/** Number of learned values. */
export function parameterCount(config: ModelConfig): number {
  return modelParameters(config).reduce((sum, p) => sum + sizeOf(p.shape), 0);
}

/** The tensors of a model on a backend, by name. Whoever made them frees them. */
export type Parameters = ReadonlyMap<string, Tensor>;

export interface InitialParametersOptions {
  readonly seed: number;
  readonly dtype: FloatType;
  /** Called behind each parameter with the values made so far, and all. */
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * New parameters: the same seed gives the same values on every backend.
 * Matrices are normal with their deviation; outputs of blocks are smaller by
 * `sqrt(2 layers)`, as GPT-2 starts them.
 */
export async function initialParameters(
  backend: Backend,
  config: ModelConfig,
  { seed, dtype, onProgress }: InitialParametersOptions,
): Promise<Parameters> {
  const random = Random.fromSeed(seed);
  const total = parameterCount(config);
  let done = 0;
  const residual = 1 / Math.sqrt(2 * config.layers);
  return uploadParameters(
    backend,
    dtype,
    modelParameters(config),
    async ({ name, shape, init }) => {
      const values = new Float64Array(sizeOf(shape));
      if ('constant' in init) {
        values.fill(init.constant);
      } else {
        const isOutput = /\.(o_proj|down_proj)\.weight$/.test(name);
        random.fillNormal(values, init.normal * (isOutput ? residual : 1));
      }
      done += values.length;
      onProgress?.(done, total);
      return values;
    },
  );
}

/**
 * Puts parameters on a backend one by one, so that the host never holds all.
 * @param values the elements of a parameter, in order.
 * @throws ShapeError when their number is wrong. Nothing stays allocated then.
 */
export async function uploadParameters(
  backend: Backend,
  dtype: FloatType,
  specs: readonly ParameterSpec[],
  values: (
    spec: ParameterSpec,
    index: number,
  ) => Promise<Float32Array | Float64Array>,
): Promise<Parameters> {
  const scope = new Scope(backend);
  const made = new Map<string, Tensor>();
  try {
    for (const [index, spec] of specs.entries()) {
      const data = narrowed(await values(spec, index), dtype);
      made.set(spec.name, scope.tensor(data, spec.shape, dtype));
    }
    for (const tensor of made.values()) scope.keep(tensor);
    return made;
  } finally {
    scope.free();
  }
}

/** Real values in the host form of a type, rounded to nearest even. */
export function narrowed(
  values: Float32Array | Float64Array,
  dtype: FloatType,
): HostArray {
  if (dtype === 'f64') return Float64Array.from(values);
  const single = Float32Array.from(values);
  if (dtype === 'f32') return single;
  return dtype === 'f16' ? f32ToF16(single) : f32ToBf16(single);
}
