import { z } from 'zod';
import { ConfigError } from '../errors';
import { type ModelConfig, parseConfig } from '../model/config';
import { type Folder, readText, writeText } from './files';
import { type ForeignConfig, fromHuggingFace } from './hugging-face';

const name = 'config.json';

/** Our fields that the ecosystem has a name for. */
const knownNames: Readonly<Record<string, string>> = {
  vocabularySize: 'vocab_size',
  layers: 'num_hidden_layers',
  context: 'max_position_embeddings',
  normEps: 'rms_norm_eps',
  tieEmbeddings: 'tie_word_embeddings',
  bos: 'bos_token_id',
  eos: 'eos_token_id',
};
const ourNames = Object.fromEntries(
  Object.entries(knownNames).map(([ours, theirs]) => [theirs, ours]),
);

/**
 * Reads a folder's `config.json`, of our own models or a known foreign one.
 * @throws ConfigError with the field that is wrong.
 */
export async function readConfig(folder: Folder): Promise<ForeignConfig> {
  const path = `${folder.path}/${name}`;
  const text = await readText(folder, name);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(path, undefined, `not JSON, ${String(cause)}`, {
      cause,
    });
  }
  const typed = z.looseObject({ model_type: z.string() }).safeParse(json);
  if (!typed.success) {
    throw new ConfigError(path, 'model_type', 'must be a string');
  }
  const { model_type: modelType, ...rest } = typed.data;
  return modelType === 'asa'
    ? { config: parseConfig(renamed(rest, toOurs), path), family: 'asa' }
    : fromHuggingFace(modelType, json, path);
}

/** Writes `config.json` of one of our own models. */
export async function writeConfig(
  folder: Folder,
  config: ModelConfig,
): Promise<void> {
  const json = {
    model_type: 'asa',
    architectures: ['AsaForCausalLM'],
    ...(renamed(config, toTheirs) as object),
  };
  await writeText(folder, name, `${JSON.stringify(json, null, 2)}\n`);
}

/** Renames every key; the letters of `attention` are no names and stay. */
function renamed(value: unknown, rename: (key: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [
      key.length === 1 ? key : rename(key),
      renamed(item, rename),
    ]),
  );
}

function toTheirs(key: string): string {
  return knownNames[key] ?? key.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
}

function toOurs(key: string): string {
  return (
    ourNames[key] ?? key.replace(/_([a-z])/g, (_, c: string) => c.toUpperCase())
  );
}
