import { writeText } from '../../../packages/core/src/io/files';
import type { NamedTensor } from '../../../packages/core/src/io/safetensors';
import { saveVersion } from '../../../packages/core/src/io/versions';
import { writeWeights } from '../../../packages/core/src/io/weights';
import { openFolder } from '../../../packages/core/src/node/files';

/**
 * A process that saves until it is killed: `versions` or `weights`, the folder,
 * and the first step. Every value that it saves is the step's number.
 */
const [kind, path = '', first] = process.argv.slice(2);
const folder = await openFolder(path);

const tensors = (step: number): NamedTensor[] =>
  Array.from({ length: 4 }, (_, i) => ({
    name: `layers.${i}.weight`,
    dtype: 'f32',
    shape: [64, 1024],
    data: new Float32Array(64 * 1024).fill(step),
  }));

/** One file and shards in turn, so that each replaces each. */
const form = (step: number) =>
  step % 3 === 0 ? {} : { maxShardBytes: 2 ** 19 };

for (let step = Number(first); ; step++) {
  if (kind === 'weights') {
    await writeWeights(folder, tensors(step), form(step));
  } else {
    await saveVersion(folder, step, async (version) => {
      await writeWeights(version, tensors(step), form(step));
      await writeText(version, 'trainer.json', JSON.stringify({ step }));
    });
  }
  process.stdout.write(`${step}\n`);
}
