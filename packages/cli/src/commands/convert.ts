import { resolve } from 'node:path';
import {
  CheckpointError,
  type FloatType,
  type Folder,
  loadModel,
  openWeights,
  saveModel,
} from '@asa/core';
import { makeFolder, openFolder } from '@asa/core/node';
import { Command, Option } from '@commander-js/extra-typings';
import { withBackend } from '../backends';
import { UsageError } from '../exit';
import { companionFiles, copyFiles } from '../model-files';
import { withProgress } from '../progress';
import { note } from '../terminal';
import { byteCount } from '../values';

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
    const target = await makeFolder(to);
    if (!options.overwrite && (await target.has('config.json'))) {
      throw new UsageError(
        `convert: target ${to} holds a model; --overwrite replaces it`,
      );
    }
    const { maxShardSize: maxShardBytes } = options;
    await withBackend('cpu', async (backend) => {
      const { model } = await withProgress('reading', (onProgress) =>
        loadModel(source, backend, { dtype, onProgress }),
      );
      await saveModel(target, model, { dtype, maxShardBytes });
    });
    await copyFiles(source, target, companionFiles);
    note(`wrote ${to}, ${dtype}`);
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
    (type) => type.toUpperCase() === most?.[0],
  );
  if (found) return found;
  const rule = `must hold real numbers, got ${most?.[0] ?? 'no tensors'}`;
  throw new CheckpointError(folder.path, undefined, rule);
}
