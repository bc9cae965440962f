import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { CheckpointError } from '../errors';
import { bf16ToF32, f16ToF32 } from '../half';
import type { ModelConfig } from '../model/config';
import { Model } from '../model/model';
import { narrowed, uploadParameters } from '../model/parameters';
import { formatShape, sizeOf, type Tensor } from '../tensor';
import { readConfig, writeConfig } from './config-file';
import type { Folder } from './files';
import { copySlice, type NameFamily, type Place, places } from './names';
import type { HostTensor, NamedTensor, Weights } from './safetensors';
import { openWeights, type WriteWeightsOptions, writeWeights } from './weights';

export interface LoadOptions {
  /** Type of the parameters on the device; f32 when left out. */
  readonly dtype?: FloatType;
  readonly signal?: AbortSignal;
  /** Called behind each parameter. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** A model, and whose tensor names its checkpoint used. */
export interface LoadedModel {
  readonly model: Model;
  readonly config: ModelConfig;
  readonly family: NameFamily;
}

/**
 * Loads `config.json` and the weights beside it onto a backend.
 * @throws ConfigError, or CheckpointError when a tensor is missing, unknown, of
 * another shape, or not finite. Nothing stays allocated then.
 */
export async function loadModel(
  folder: Folder,
  backend: Backend,
  options: LoadOptions = {},
): Promise<LoadedModel> {
  const { config, family } = await readConfig(folder);
  const weights = await openWeights(folder);
  try {
    const all = places(config, family);
    checkNames(weights, all, config);
    const { dtype = 'f32', signal, onProgress } = options;
    const parameters = await uploadParameters(
      backend,
      dtype,
      all.map((place) => place.parameter),
      async (_, index) => {
        signal?.throwIfAborted();
        onProgress?.(index, all.length);
        return readPlace(weights, all[index] as Place);
      },
    );
    onProgress?.(all.length, all.length);
    return { model: new Model(backend, config, parameters), config, family };
  } finally {
    await weights.close();
  }
}

export interface SaveOptions extends WriteWeightsOptions {
  /** Type of the weights on disk; that of the parameters when left out. */
  readonly dtype?: FloatType;
}

/**
 * Writes `config.json` and the weights of a model in our own names. A crash
 * leaves the old weights or the new.
 */
export async function saveModel(
  folder: Folder,
  model: Model,
  { dtype = model.dtype, ...options }: SaveOptions = {},
): Promise<void> {
  await writeWeights(
    folder,
    [...model.parameters].map(
      ([name, tensor]): NamedTensor => ({
        name,
        dtype,
        shape: tensor.shape,
        data: async () => narrowed(await readFloats(tensor), dtype),
      }),
    ),
    options,
  );
  await writeConfig(folder, model.config);
}

/**
 * Tensors by parameter name, such as gradients, under the names and in the
 * layout that a family's checkpoints have.
 */
export function toFamily(
  config: ModelConfig,
  family: NameFamily,
  tensors: ReadonlyMap<string, Float32Array | Float64Array>,
): Map<string, Float32Array | Float64Array> {
  const result = new Map<string, Float32Array | Float64Array>();
  for (const { parameter, tensor, slice } of places(config, family)) {
    const values = tensors.get(parameter.name);
    if (!values) continue;
    if (!slice) {
      result.set(tensor, values);
      continue;
    }
    const size = (values.length / slice.rows) * slice.of;
    const whole = result.get(tensor) ?? zerosLike(values, size);
    copySlice(whole, values, slice, 'in');
    result.set(tensor, whole);
  }
  return result;
}

/** Real values of a tensor of a file, widened to f32 or f64. */
export function widened({
  dtype,
  data,
}: Pick<HostTensor, 'dtype' | 'data'>): Float32Array | Float64Array {
  if (data instanceof Uint16Array) {
    return dtype === 'f16' ? f16ToF32(data) : bf16ToF32(data);
  }
  return data instanceof Int32Array ? Float32Array.from(data) : data;
}

function zerosLike(
  values: Float32Array | Float64Array,
  length: number,
): Float32Array | Float64Array {
  return values instanceof Float64Array
    ? new Float64Array(length)
    : new Float32Array(length);
}

async function readFloats(
  tensor: Tensor,
): Promise<Float32Array | Float64Array> {
  const data = await tensor.backend.read(tensor.storage);
  return widened({ dtype: tensor.dtype, data });
}

async function readPlace(
  weights: Weights,
  { parameter, tensor, slice }: Place,
): Promise<Float32Array | Float64Array> {
  const file = await weights.read(tensor);
  const fail = (rule: string): never => {
    throw new CheckpointError(weights.path, tensor, rule);
  };
  if (file.dtype === 'i32') fail('must hold real numbers, got integers');
  checkShape(file, { parameter, tensor, ...(slice && { slice }) }, fail);
  const values = widened(file);
  if (!values.every(Number.isFinite)) fail('must hold finite numbers only');
  if (!slice) return values;
  const part = zerosLike(values, sizeOf(parameter.shape));
  copySlice(values, part, slice, 'out');
  return part;
}

/** Sizes and the last extent must agree; a norm may lack an axis of extent 1. */
function checkShape(
  file: HostTensor,
  { parameter, slice }: Place,
  fail: (rule: string) => never,
): void {
  const { shape } = parameter;
  const columns = shape.at(-1) ?? 1;
  const squeezed = shape.filter((extent) => extent !== 1);
  const wanted = slice ? [slice.heads * slice.of, columns] : shape;
  const fits =
    file.shape.join() === wanted.join() ||
    (!slice && file.shape.join() === squeezed.join());
  if (!fits) {
    fail(`must be ${formatShape(wanted)}, got ${formatShape(file.shape)}`);
  }
}

/** Buffers that old checkpoints carry and no model needs. */
const ignored = /\.rotary_emb\.inv_freq$/;

function checkNames(
  weights: Weights,
  all: readonly Place[],
  config: ModelConfig,
): void {
  const wanted = new Set(all.map(({ tensor }) => tensor));
  for (const name of wanted) {
    if (!weights.tensors.has(name)) {
      throw new CheckpointError(weights.path, name, 'is missing');
    }
  }
  for (const name of weights.tensors.keys()) {
    const isTied = config.tieEmbeddings && name === 'lm_head.weight';
    if (!wanted.has(name) && !isTied && !ignored.test(name)) {
      throw new CheckpointError(
        weights.path,
        name,
        'the model has no such tensor',
      );
    }
  }
}
