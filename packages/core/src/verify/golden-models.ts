import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { CheckpointError } from '../errors';
import { type Folder, withFile } from '../io/files';
import { loadModel, toFamily, widened } from '../io/model-folder';
import type { NameFamily } from '../io/names';
import { openSafetensors, type Weights } from '../io/safetensors';
import { Cache } from '../model/cache';
import type { Model } from '../model/model';
import { Scope } from '../scope';
import { AdamW } from '../train/adamw';
import {
  backpropagate,
  countedTargets,
  type Example,
  freeAll,
  losses,
} from '../train/loss';

/** One comparison; it holds when `error <= allowance`. */
export interface GoldenRow {
  readonly name: string;
  /** RMS of the difference over RMS of the reference; 1 where one lacks it. */
  readonly error: number;
  readonly allowance: number;
}

/** Largest RMS ratio, and relative error of a loss, in f32. */
const ratio = 1e-5;
const prompt = 16;
/**
 * Transformers' `generate` was called with this padding token: it masks it in
 * the prompt, and positions do not count it, as if it were not there.
 */
const padding = 0;

/**
 * Compares a model folder with the results of another implementation in its
 * `expected.safetensors`: `input_ids [B, T]`, and what is there of `logits
 * [B, T, V]`, `loss`, `grad.<tensor>`, `greedy [R, 16 + n]` and
 * `adamw_losses [S]`, whose optimizer the file's metadata describes.
 * @throws CheckpointError when the folder lacks a file or its ids.
 */
export async function compareGoldenModel(
  backend: Backend,
  folder: Folder,
  dtype: FloatType = 'f32',
): Promise<GoldenRow[]> {
  const { model, family } = await loadModel(folder, backend, { dtype });
  try {
    return await withFile(folder, 'expected.safetensors', async (file) => {
      const expected = await openSafetensors(file);
      const examples = shifted(await rowsOf(expected, 'input_ids'));
      return [
        ...(await compareLogits(model, expected, examples)),
        ...(await compareLoss(model, expected, examples)),
        ...(await compareGradients(model, family, expected, examples)),
        ...(await compareGreedy(model, expected)),
        // Last, for it changes the weights.
        ...(await compareTraining(model, expected, examples)),
      ];
    });
  } finally {
    model.free();
  }
}

/** Each row predicts its next tokens; nothing is known behind the last. */
function shifted(rows: readonly (readonly number[])[]): Example[] {
  return rows.map((tokens) => ({ tokens, targets: [...tokens.slice(1), -1] }));
}

async function compareLogits(
  model: Model,
  expected: Weights,
  examples: readonly Example[],
): Promise<GoldenRow[]> {
  if (!expected.tensors.has('logits')) return [];
  const scope = new Scope(model.backend);
  const batch = model.batch(examples);
  try {
    const logits = model.logits(scope, model.forward(scope, batch));
    const got = await scope.read(logits);
    const want = await valuesOf(expected, 'logits');
    const values = widened({ dtype: model.dtype, data: got });
    return [
      { name: 'logits', error: rmsRatio(values, want), allowance: ratio },
    ];
  } finally {
    scope.free();
    batch.free();
  }
}

async function compareLoss(
  model: Model,
  expected: Weights,
  examples: readonly Example[],
): Promise<GoldenRow[]> {
  if (!expected.tensors.has('loss')) return [];
  const got = sum(await losses(model, examples)) / countedTargets(examples);
  const want = await valuesOf(expected, 'loss');
  return [{ name: 'loss', error: rmsRatio([got], want), allowance: ratio }];
}

async function compareGradients(
  model: Model,
  family: NameFamily,
  expected: Weights,
  examples: readonly Example[],
): Promise<GoldenRow[]> {
  const names = [...expected.tensors.keys()].filter((n) => /^grad\./.test(n));
  if (names.length === 0) return [];
  const found = await gradientsOf(model, examples);
  const ours = toFamily(model.config, family, found);
  const rows: GoldenRow[] = [];
  for (const name of names) {
    const got = ours.get(name.slice('grad.'.length)) ?? [];
    const error = rmsRatio(got, await valuesOf(expected, name));
    rows.push({ name, error, allowance: ratio });
  }
  return rows;
}

async function gradientsOf(
  model: Model,
  examples: readonly Example[],
): Promise<Map<string, Float32Array | Float64Array>> {
  const share = 1 / countedTargets(examples);
  const { loss, gradients } = backpropagate(model, examples, share);
  try {
    const read = new Map<string, Float32Array | Float64Array>();
    for (const [name, { dtype, backend, storage }] of gradients) {
      read.set(name, widened({ dtype, data: await backend.read(storage) }));
    }
    return read;
  } finally {
    loss.free();
    freeAll(gradients);
  }
}

/** `error` counts the tokens that differ; none may. */
async function compareGreedy(
  model: Model,
  expected: Weights,
): Promise<GoldenRow[]> {
  if (!expected.tensors.has('greedy')) return [];
  const rows: GoldenRow[] = [];
  for (const [i, want] of (await rowsOf(expected, 'greedy')).entries()) {
    const start = want.slice(0, prompt).filter((id) => id !== padding);
    const next = want.slice(prompt);
    const got = await greedy(model, start, next.length);
    const error = next.filter((token, at) => token !== got[at]).length;
    rows.push({ name: `greedy ${i}`, error, allowance: 0 });
  }
  return rows;
}

/** Prefill of `start`, then one token at a time; gives the `count` new ones. */
async function greedy(
  model: Model,
  start: readonly number[],
  count: number,
): Promise<number[]> {
  const { backend, config, dtype } = model;
  const capacity = start.length + count;
  const cache = new Cache(backend, config, { capacity, dtype });
  const tokens = [...start];
  try {
    cache.resetSlot(0);
    for (let past = 0; tokens.length < capacity; ) {
      const fresh = tokens.slice(past);
      tokens.push(await nextToken(model, cache, fresh, past));
      past += fresh.length;
    }
    return tokens.slice(start.length);
  } finally {
    cache.free();
  }
}

async function nextToken(
  model: Model,
  cache: Cache,
  tokens: readonly number[],
  past: number,
): Promise<number> {
  const scope = new Scope(model.backend);
  const batch = model.batch([{ tokens, past }]);
  try {
    const at = { cache: { cache, slots: [0] } };
    const logits = model.logits(scope, model.forward(scope, batch, at));
    const values = widened({
      dtype: model.dtype,
      data: await scope.read(logits),
    });
    return argmax(values.subarray(-model.config.vocabularySize));
  } finally {
    scope.free();
    batch.free();
  }
}

async function compareTraining(
  model: Model,
  expected: Weights,
  examples: readonly Example[],
): Promise<GoldenRow[]> {
  if (!expected.tensors.has('adamw_losses')) return [];
  const want = await valuesOf(expected, 'adamw_losses');
  const [beta1 = 0, beta2 = 0] = attribute<number[]>(expected, 'betas');
  const optimizer = new AdamW(model, {
    beta1,
    beta2,
    eps: attribute<number>(expected, 'eps'),
    weightDecay: attribute<number>(expected, 'weight_decay'),
    clip: attribute<number>(expected, 'clip'),
    decay: 'all',
  });
  const learningRate = attribute<number>(expected, 'lr');
  const share = 1 / countedTargets(examples);
  try {
    const rows: GoldenRow[] = [];
    for (let step = 1; step <= want.length; step++) {
      const got = sum(await losses(model, examples)) * share;
      const { loss, gradients } = backpropagate(model, examples, share);
      const scope = new Scope(model.backend);
      const norm = optimizer.squaredNorm(scope, gradients);
      optimizer.prepareUpdate(gradients, norm, { step, learningRate })();
      scope.free();
      loss.free();
      freeAll(gradients);
      const error = rmsRatio([got], want.slice(step - 1, step));
      rows.push({ name: `adamw loss ${step}`, error, allowance: ratio });
    }
    return rows;
  } finally {
    optimizer.free();
  }
}

/** A value of the file's metadata, which is JSON. */
function attribute<T>(expected: Weights, name: string): T {
  const text = expected.metadata.get(name);
  if (text === undefined) {
    const rule = `the metadata must have ${name} beside adamw_losses`;
    throw new CheckpointError(expected.path, undefined, rule);
  }
  return JSON.parse(text) as T;
}

async function valuesOf(
  expected: Weights,
  name: string,
): Promise<Float32Array | Float64Array> {
  return widened(await expected.read(name));
}

/** The rows of an integer matrix. */
async function rowsOf(expected: Weights, name: string): Promise<number[][]> {
  const { shape, data } = await expected.read(name);
  const [rows = 0, columns = 0] = shape;
  return Array.from({ length: rows }, (_, row) => [
    ...data.subarray(row * columns, (row + 1) * columns),
  ]);
}

/** RMS of the difference over RMS of `want`; 1 where the lengths differ. */
function rmsRatio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return 1;
  let [difference, reference] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference += ((got[i] ?? 0) - (want[i] ?? 0)) ** 2;
    reference += (want[i] ?? 0) ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / reference);
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if ((values[i] ?? 0) > (values[best] ?? 0)) best = i;
  }
  return best;
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}
