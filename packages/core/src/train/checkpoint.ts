import { z } from 'zod';
import { CheckpointError } from '../errors';
import { type Folder, readText, withFile, writeText } from '../io/files';
import { saveModel } from '../io/model-folder';
import {
  type NamedTensor,
  openSafetensors,
  type Weights,
  writeSafetensors,
} from '../io/safetensors';
import { openLatest, saveVersion } from '../io/versions';
import { openWeights } from '../io/weights';
import { Model } from '../model/model';
import { formatShape, type Tensor } from '../tensor';
import type { AdamW } from './adamw';
import { trainSchema } from './config';
import { lossScaleStateSchema } from './loss-scale';

const OPTIMIZER = 'optimizer.safetensors';
const STATE = 'trainer.json';
const SLOT = /^slot-[0-9]+$/;

const natural = z.int().nonnegative();

const stateSchema = z.object({
  step: natural,
  tokens: natural,
  /** Running mean of the loss, nats. */
  usualLoss: z.number().nullable(),
  /** Type of the weights that compute; the masters are wide. */
  dtype: z.enum(['f64', 'f32', 'f16', 'bf16']).default('f32'),
  /** Where the weights are f16. */
  lossScale: lossScaleStateSchema.optional(),
  position: z.object({
    epoch: natural,
    row: natural,
    random: z.array(z.int()).readonly(),
  }),
  config: trainSchema,
  /** Fingerprint of the documents. */
  data: z.string(),
});

/** Where a run stands, apart from its tensors. */
export type CheckpointState = z.infer<typeof stateSchema>;

export interface SaveCheckpointOptions {
  /** Checkpoints to keep, this one included; 1 when left out. */
  readonly keep?: number;
  /** Writes more into the checkpoint, such as the tokenizer. */
  readonly alsoWrite?: (version: Folder) => Promise<void>;
}

/**
 * Saves a model folder with the optimizer's moments and the run's state beside
 * the weights. Saves take turns in `keep` slots, and each slot changes as one.
 */
export async function saveCheckpoint(
  folder: Folder,
  model: Model,
  optimizer: AdamW,
  state: CheckpointState,
  { keep = 1, alsoWrite }: SaveCheckpointOptions = {},
): Promise<void> {
  const slot = await nextSlot(folder, keep, state.step);
  await saveVersion(slot, state.step, async (version) => {
    const { backend, config } = model;
    await saveModel(version, new Model(backend, config, optimizer.masters));
    await version.write(OPTIMIZER, (sink) =>
      writeSafetensors(sink, [
        ...named('m', optimizer.m),
        ...named('v', optimizer.v),
      ]),
    );
    await writeText(version, STATE, `${JSON.stringify(state, null, 2)}\n`);
    await alsoWrite?.(version);
  });
}

/** Whether `latestCheckpoint` has one to give. */
export async function hasCheckpoint(folder: Folder): Promise<boolean> {
  return (await savedSlots(folder)).length > 0;
}

/**
 * The last checkpoint of a folder: a model folder, and the run's state.
 * @throws CheckpointError when there is none, or its state is damaged.
 */
export async function latestCheckpoint(
  folder: Folder,
): Promise<{ readonly version: Folder; readonly state: CheckpointState }> {
  const saved = await savedSlots(folder);
  const [first, ...rest] = saved;
  if (!first) {
    throw new CheckpointError(folder.path, undefined, 'holds no checkpoint');
  }
  return rest.reduce(
    (best, slot) => (slot.state.step > best.state.step ? slot : best),
    first,
  );
}

/** Reads masters and moments into an optimizer of the same model. */
export async function readOptimizer(
  version: Folder,
  optimizer: AdamW,
): Promise<void> {
  const weights = await openWeights(version);
  try {
    await readInto(weights, '', optimizer.masters);
  } finally {
    await weights.close();
  }
  await withFile(version, OPTIMIZER, async (file) => {
    const moments = await openSafetensors(file);
    await readInto(moments, 'm.', optimizer.m);
    await readInto(moments, 'v.', optimizer.v);
  });
}

interface SavedSlot {
  readonly name: string;
  readonly version: Folder;
  readonly state: CheckpointState;
}

async function savedSlots(folder: Folder): Promise<SavedSlot[]> {
  const saved: SavedSlot[] = [];
  for (const name of await folder.list()) {
    if (!SLOT.test(name)) continue;
    const slot = await folder.subfolder(name);
    // A first save that never ended leaves a slot without one.
    if (!(await slot.has('latest'))) continue;
    const version = await openLatest(slot);
    saved.push({ name, version, state: await readState(version) });
  }
  return saved;
}

/** An unused slot, or the one with this step, or the oldest. */
async function nextSlot(
  folder: Folder,
  keep: number,
  step: number,
): Promise<Folder> {
  const saved = new Map(
    (await savedSlots(folder)).map(({ name, state }) => [name, state.step]),
  );
  const names = Array.from({ length: keep }, (_, i) => `slot-${i}`);
  const age = (name: string) => {
    const at = saved.get(name) ?? -1;
    return at === step ? -2 : at;
  };
  const oldest = names.reduce((a, b) => (age(b) < age(a) ? b : a));
  return folder.subfolder(oldest);
}

async function readState(version: Folder): Promise<CheckpointState> {
  const path = `${version.path}/${STATE}`;
  const text = await readText(version, STATE);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(path, undefined, `not JSON, ${String(cause)}`, {
      cause,
    });
  }
  const parsed = stateSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const rule = `${issue?.path.join('.')}: ${issue?.message}`;
  throw new CheckpointError(path, undefined, rule);
}

function named(
  prefix: string,
  tensors: ReadonlyMap<string, Tensor>,
): NamedTensor[] {
  return [...tensors].map(([name, tensor]) => ({
    name: `${prefix}.${name}`,
    dtype: tensor.dtype,
    shape: tensor.shape,
    data: () => tensor.backend.read(tensor.storage),
  }));
}

async function readInto(
  weights: Weights,
  prefix: string,
  tensors: ReadonlyMap<string, Tensor>,
): Promise<void> {
  for (const [name, tensor] of tensors) {
    const { dtype, shape, data } = await weights.read(`${prefix}${name}`);
    if (dtype !== tensor.dtype || shape.join() !== tensor.shape.join()) {
      throw new CheckpointError(
        weights.path,
        `${prefix}${name}`,
        `must be ${tensor.dtype} ${formatShape(tensor.shape)}, got ${dtype} ${formatShape(shape)}`,
      );
    }
    tensor.backend.write(tensor.storage, data);
  }
}
