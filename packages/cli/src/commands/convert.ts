import { resolve } from 'node:path';
import {
  CheckpointError,
  type FloatType,
  type Folder,
  loadModel,
  openWeights,
  saveModel,
  withFile,
} from '@asa/core';
import { makeFolder, openFolder } from '@asa/core/node';
import { Command, Option } from '@commander-js/extra-typings';
import { openBackend } from '../backends';
import { UsageError } from '../exit';
import { withProgress } from '../progress';
import { note } from '../terminal';
import { byteCount } from '../values';

/** What belongs to a model beside its configuration and its weights. */
const companions = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
  'README.md',
  'LICENSE',
];

export const command = new Command('convert')
  .description(
    'Writes a model folder in our own form, in another type or in shards.',
  )
  .argument('<source>', 'a model folder, ours or of a known other kind')
  .argument('<target>', 'the folder to write; made where it is missing')
  .addOption(
    new Option(
      '--dtype <type>',
      "type of the weights; the source's when left out",
    ).choices(['f32', 'f16', 'bf16']),
  )
  .option(
    '--max-shard-size <size>',
    'largest weight file, such as 500MB',
    byteCount,
  )
  .option('--overwrite', 'replace a model that is in the target')
  .addHelpText(
    'after',
    '\nExample:\n  asa convert ./llama ./converted --dtype bf16',
  )
  .action(async (from, to, options) => {
    if (resolve(from) === resolve(to)) {
      throw new UsageError(`convert: target must be another folder, got ${to}`);
    }
    const source = await openFolder(from);
    const dtype = options.dtype ?? (await dtypeOf(source));
    const backend = await openBackend('cpu');
    try {
      const { model } = await withProgress('reading', (onProgress) =>
        loadModel(source, backend, { dtype, onProgress }),
      );
      const target = await makeFolder(to);
      if (!options.overwrite && (await target.has('config.json'))) {
        throw new UsageError(
          `convert: target ${to} holds a model; --overwrite replaces it`,
        );
      }
      const { maxShardSize: maxShardBytes } = options;
      await saveModel(target, model, { dtype, maxShardBytes });
      for (const name of companions) await copy(source, target, name);
      note(`wrote ${to}, ${dtype}`);
    } finally {
      await backend.destroy();
    }
  });

/** The type of most of a folder's weights. */
async function dtypeOf(folder: Folder): Promise<FloatType> {
  const weights = await openWeights(folder);
  await weights.close();
  const sizes = new Map<string, number>();
  for (const { dtype, shape } of weights.tensors.values()) {
    const size = shape.reduce((product, extent) => product * extent, 1);
    sizes.set(dtype, (sizes.get(dtype) ?? 0) + size);
  }
  const [most] = [...sizes].sort(([, a], [, b]) => b - a);
  const found = (['f64', 'f32', 'f16', 'bf16'] as const).find(
    (type) => type === most?.[0],
  );
  if (found) return found;
  const rule = `must hold real numbers, got ${most?.[0] ?? 'no tensors'}`;
  throw new CheckpointError(folder.path, undefined, rule);
}

async function copy(
  source: Folder,
  target: Folder,
  name: string,
): Promise<void> {
  if (!(await source.has(name))) return;
  const bytes = await withFile(source, name, (file) => file.read(0, file.size));
  await target.write(name, (sink) => sink.write(bytes));
}
