import { CheckpointError } from '../errors';
import {
  checkName,
  type Folder,
  readText,
  removeTemporaries,
  writeText,
} from './files';
import {
  type NamedTensor,
  openSafetensors,
  type SafetensorsOptions,
  tensorBytes,
  type Weights,
  writeSafetensors,
} from './safetensors';
import { JsonReader } from './strict-json';

/**
 * A model folder's weights, as the ecosystem lays them out: one file, or
 * shards that an index lists. Where both are there, the one file counts.
 */
const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const SHARD = /^model(-r[0-9]+)?-[0-9]{5}-of-[0-9]{5}\.safetensors$/;

/**
 * Opens a folder's weights; the result is to be closed.
 * @throws CheckpointError when a file is missing or breaks the format, or the
 * index and the shards do not hold the same tensors, once each.
 */
export async function openWeights(
  folder: Folder,
  options: SafetensorsOptions = {},
): Promise<Weights> {
  if (await folder.has(SINGLE)) return openFile(folder, SINGLE, options);
  if (await folder.has(INDEX)) return openShards(folder, options);
  throw new CheckpointError(
    folder.path,
    undefined,
    `must have ${SINGLE} or ${INDEX}, got neither`,
  );
}

async function openFile(
  folder: Folder,
  name: string,
  options: SafetensorsOptions,
): Promise<Weights> {
  const file = await folder.open(name);
  try {
    return await openSafetensors(file, options);
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function openShards(
  folder: Folder,
  options: SafetensorsOptions,
): Promise<Weights> {
  const path = `${folder.path}/${INDEX}`;
  const index = parseIndex(path, await readText(folder, INDEX));
  const names = [...new Set(index.values())];
  for (const name of names) checkName(path, name);
  const shards = new Map<string, Weights>();
  try {
    for (const name of names) {
      shards.set(name, await openFile(folder, name, options));
    }
    return joinShards(path, index, shards);
  } catch (error) {
    await closeAll(shards.values());
    throw error;
  }
}

async function closeAll(shards: Iterable<Weights>): Promise<void> {
  for (const shard of shards) await shard.close();
}

/** Each tensor's shard. */
type WeightMap = ReadonlyMap<string, string>;

function parseIndex(path: string, text: string): WeightMap {
  let index: Map<string, string> | undefined;
  const fail = (rule: string) => new CheckpointError(path, undefined, rule);
  const json = new JsonReader(text, fail);
  json.object((field) => {
    if (field !== 'weight_map') return json.skip();
    const shards = new Map<string, string>();
    json.object((tensor) => shards.set(tensor, json.string()));
    index = shards;
  });
  json.end();
  if (!index) throw fail('must have "weight_map"');
  return index;
}

function joinShards(
  path: string,
  index: WeightMap,
  shards: ReadonlyMap<string, Weights>,
): Weights {
  const owners = ownersOf(path, index, shards);
  const all = [...shards.values()];
  return {
    path,
    tensors: new Map(all.flatMap((shard) => [...shard.tensors])),
    metadata: new Map(all.flatMap((shard) => [...shard.metadata])),
    read: async (name) => {
      const owner = owners.get(name);
      if (!owner) throw new CheckpointError(path, name, 'is not there');
      return owner.read(name);
    },
    close: () => closeAll(all),
  };
}

/** The shard that holds each tensor, after checking it against the index. */
function ownersOf(
  path: string,
  index: WeightMap,
  shards: ReadonlyMap<string, Weights>,
): ReadonlyMap<string, Weights> {
  const owners = new Map<string, Weights>();
  for (const [name, shard] of shards) {
    for (const tensor of shard.tensors.keys()) {
      const other = owners.get(tensor);
      if (other) {
        const rule = `must be in one shard, got ${other.path} and ${shard.path}`;
        throw new CheckpointError(path, tensor, rule);
      }
      const listed = index.get(tensor);
      if (listed === undefined) {
        const rule = `is in ${name}, but not in the index`;
        throw new CheckpointError(path, tensor, rule);
      }
      owners.set(tensor, shard);
    }
  }
  for (const [tensor, name] of index) {
    if (!owners.has(tensor) || owners.get(tensor) !== shards.get(name)) {
      const rule = `the index puts it in ${name}, which does not hold it`;
      throw new CheckpointError(path, tensor, rule);
    }
  }
  return owners;
}

export interface WriteWeightsOptions {
  metadata?: Readonly<Record<string, string>>;
  /** A file's tensors together, in bytes; a larger tensor gets its own file. */
  maxShardBytes?: number;
}

/**
 * Replaces a folder's weights. A crash at any moment leaves the old weights or
 * the new: shards get names that no file has yet, so the old ones stay whole
 * until one rename puts the new index, or the one file, in their place. What
 * that leaves over goes last. One process at a time may write a folder.
 */
export async function writeWeights(
  folder: Folder,
  tensors: Iterable<NamedTensor>,
  options: WriteWeightsOptions = {},
): Promise<void> {
  // Transformers refuses files that do not name a framework here.
  const { metadata = { format: 'pt' }, maxShardBytes = 5e9 } = options;
  const parts = split([...tensors], maxShardBytes);
  const [only] = parts;
  await removeTemporaries(folder);
  if (only && parts.length === 1) {
    await folder.write(SINGLE, (sink) =>
      writeSafetensors(sink, only, metadata),
    );
    await removeOthers(folder, new Set([SINGLE]));
  } else {
    const shards = nameShards(parts, await folder.list());
    await writeShards(folder, shards, metadata);
    await writeText(folder, INDEX, encodeIndex(shards));
    await removeOthers(folder, new Set([INDEX, ...shards.keys()]));
  }
}

/** Runs of tensors of at most so many bytes together; at least one run. */
function split(
  tensors: readonly NamedTensor[],
  maxBytes: number,
): NamedTensor[][] {
  let part: NamedTensor[] = [];
  let bytes = 0;
  const parts = [part];
  for (const tensor of tensors) {
    bytes += tensorBytes(tensor);
    if (bytes > maxBytes && part.length > 0) {
      part = [];
      parts.push(part);
      bytes = tensorBytes(tensor);
    }
    part.push(tensor);
  }
  return parts;
}

type Shards = ReadonlyMap<string, readonly NamedTensor[]>;

/** `model-00001-of-00002.safetensors`, or `model-r1-...` where that is taken. */
function nameShards(
  parts: readonly NamedTensor[][],
  taken: readonly string[],
): Shards {
  const five = (n: number) => String(n).padStart(5, '0');
  for (let revision = 0; ; revision++) {
    const prefix = revision === 0 ? 'model' : `model-r${revision}`;
    const names = parts.map(
      (_, i) => `${prefix}-${five(i + 1)}-of-${five(parts.length)}.safetensors`,
    );
    if (names.every((name) => !taken.includes(name))) {
      return new Map(parts.map((part, i) => [names[i] ?? '', part]));
    }
  }
}

async function writeShards(
  folder: Folder,
  shards: Shards,
  metadata: Readonly<Record<string, string>>,
): Promise<void> {
  try {
    for (const [name, part] of shards) {
      await folder.write(name, (sink) =>
        writeSafetensors(sink, part, metadata),
      );
    }
  } catch (error) {
    // A full disk gets its room back; the failure itself is what to report.
    for (const name of shards.keys()) await folder.remove(name).catch(() => {});
    throw error;
  }
}

function encodeIndex(shards: Shards): string {
  const all = [...shards.values()].flat();
  const map = [...shards].flatMap(([name, part]) =>
    part.map((tensor) => [tensor.name, name] as const),
  );
  const index = {
    metadata: {
      total_size: all.reduce((sum, tensor) => sum + tensorBytes(tensor), 0),
    },
    weight_map: Object.fromEntries(map),
  };
  return `${JSON.stringify(index, null, 2)}\n`;
}

/** Removes the weights that are not the new ones; first what readers look for. */
async function removeOthers(
  folder: Folder,
  keep: ReadonlySet<string>,
): Promise<void> {
  const shards = (await folder.list()).filter((name) => SHARD.test(name));
  for (const name of [SINGLE, INDEX, ...shards]) {
    if (!keep.has(name)) await folder.remove(name);
  }
}
