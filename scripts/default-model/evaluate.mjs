// Measures the trained models: needles, bits a byte and loss by position on
// held-out text, multiple choice.
//
//   node scripts/default-model/evaluate.mjs WORK_FOLDER HELD_OUT_FOLDER KIND…
//     [--samples 2] [--depths 10] [--lengths 2k,4k,8k] [--characters 60000]
//     [--choice FILE…] [--limit 500] [--backend webgpu]
//
// Writes needle.json, perplexity.json and choice.json into WORK_FOLDER/KIND.
// The CLI must be built.
import { spawnSync } from 'node:child_process';
import { readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    samples: { type: 'string', default: '2' },
    depths: { type: 'string', default: '10' },
    lengths: { type: 'string', default: '2k,4k,8k' },
    characters: { type: 'string', default: '60000' },
    choice: { type: 'string', multiple: true, default: [] },
    limit: { type: 'string', default: '500' },
    backend: { type: 'string', default: 'webgpu' },
  },
});
const [work, heldOut, ...kinds] = positionals;
if (kinds.length === 0) {
  console.error('evaluate: needs WORK_FOLDER HELD_OUT_FOLDER KIND…');
  process.exit(2);
}
const main = join(
  dirname(fileURLToPath(import.meta.url)),
  '../../packages/cli/dist/main.js',
);
const [novel] = readdirSync(heldOut)
  .filter((name) => name.endsWith('.txt'))
  .sort();

for (const kind of kinds) {
  const model = join(work, kind);
  const evaluate = (name, ...args) => {
    const began = performance.now();
    const { status, stdout } = spawnSync(
      process.execPath,
      [
        ...[main, 'eval', name, '--json', '--model', model],
        ...['--backend', values.backend, ...args],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 2 ** 28 },
    );
    if (status !== 0) process.exit(status ?? 1);
    writeFileSync(join(model, `${name}.json`), stdout);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    console.error(`${kind}: ${name} in ${seconds} s`);
  };
  evaluate(
    'perplexity',
    ...['--data', heldOut, '--characters', values.characters],
  );
  evaluate(
    'needle',
    ...['--text', join(heldOut, novel), '--lengths', values.lengths],
    ...['--depths', values.depths, '--samples', values.samples],
    ...['--batch', values.depths, '--answer-tokens', '64'],
  );
  if (values.choice.length > 0) {
    const files = values.choice.flatMap((file) => ['--data', file]);
    evaluate('choice', ...files, '--limit', values.limit);
  }
}
