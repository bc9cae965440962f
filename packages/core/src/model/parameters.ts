import type { Backend } from '../backend';
import type { FloatType, HostArray } from '../dtype';
import { ShapeError } from '../errors';
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
import { formatShape, sizeOf, type Tensor } from '../tensor';
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

/**
 * New parameters: the same seed gives the same values on every backend.
 * Matrices are normal with their deviation; outputs of blocks are smaller by
 * `sqrt(2 layers)`, as GPT-2 starts them.
 */
export function initialParameters(
  backend: Backend,
  config: ModelConfig,
  { seed, dtype }: { readonly seed: number; readonly dtype: FloatType },
): Parameters {
  const random = Random.fromSeed(seed);
  const residual = 1 / Math.sqrt(2 * config.layers);
  return upload(
    backend,
    dtype,
    modelParameters(config).map(({ name, shape, init }) => {
      const values = new Float64Array(sizeOf(shape));
      if ('constant' in init) values.fill(init.constant);
      else {
        const isOutput = /\.(o_proj|down_proj)\.weight$/.test(name);
        const deviation = init.normal * (isOutput ? residual : 1);
        for (let i = 0; i < values.length; i++)
          values[i] = deviation * random.normal();
      }
      return { name, shape, values };
    }),
  );
}

/**
 * Parameters from values on the host.
 * @throws ShapeError when a tensor is missing, unknown or of another shape.
 */
export function parametersFrom(
  backend: Backend,
  config: ModelConfig,
  tensors: ReadonlyMap<string, HostTensor>,
  dtype: FloatType,
): Parameters {
  const specs = modelParameters(config);
  const known = new Set(specs.map(({ name }) => name));
  for (const name of tensors.keys()) {
    if (!known.has(name))
      throw new ShapeError(`${name}: the model has no such tensor`);
  }
  return upload(
    backend,
    dtype,
    specs.map(({ name, shape }) => {
      const tensor = tensors.get(name);
      if (!tensor) throw new ShapeError(`${name}: the tensor is missing`);
      if (tensor.shape.join() !== shape.join()) {
        throw new ShapeError(
          `${name}: must be ${formatShape(shape)}, got ${formatShape(tensor.shape)}`,
        );
      }
      return { name, shape, values: tensor.values };
    }),
  );
}

/** Real values on the host, whatever type a file had. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array | Float64Array;
}

function upload(
  backend: Backend,
  dtype: FloatType,
  tensors: readonly (HostTensor & { readonly name: string })[],
): Parameters {
  const scope = new Scope(backend);
  try {
    const made = tensors.map(
      ({ name, shape, values }) =>
        [name, scope.tensor(stored(values, dtype), shape, dtype)] as const,
    );
    return new Map(made.map(([name, tensor]) => [name, scope.keep(tensor)]));
  } finally {
    scope.free();
  }
}

function stored(
  values: Float32Array | Float64Array,
  dtype: FloatType,
): HostArray {
  if (dtype === 'f64') return Float64Array.from(values);
  const single = Float32Array.from(values);
  if (dtype === 'f32') return single;
  return dtype === 'f16' ? f32ToF16(single) : f32ToBf16(single);
}
