// The default model's recipe: one command from text to the model folder that
// the CLI carries, with the models that its card compares it with.
//
//   node scripts/default-model/train.mjs TRAIN_FOLDER HELD_OUT_FOLDER WORK_FOLDER [BACKEND]
//
// The folders hold .txt files; the backend is webgpu where none is named, which
// takes ten minutes a model on an H100. Build first (`npx turbo run build`).
import { spawnSync } from 'node:child_process';
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ByteTrigram } from '../../packages/core/dist/index.js';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '..', '..');
const [train, heldOut, work, backend = 'webgpu'] = process.argv.slice(2);
if (!work) {
  console.error('train: needs TRAIN_FOLDER HELD_OUT_FOLDER WORK_FOLDER');
  process.exit(2);
}

/** Characters of each held-out text that the card's figures are over. */
const characters = 20_000;

function asa(...args) {
  const main = join(root, 'packages/cli/dist/main.js');
  const { status, stdout } = spawnSync(process.execPath, [main, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
  });
  if (status !== 0) process.exit(status ?? 1);
  return stdout;
}

const tokenizer = join(work, 'tokenizer');
asa(
  'tokenizer',
  'train',
  '--data',
  train,
  '--vocabulary',
  '4096',
  '--out',
  tokenizer,
);
const figures = {};
for (const kind of ['asa', 'full']) {
  const out = join(work, kind);
  const began = performance.now();
  asa(
    ...['train', '--backend', backend, '--config', join(here, `${kind}.json`)],
    ...['--data', train, '--validation', heldOut, '--tokenizer', tokenizer],
    ...['--steps', '3000', '--batch', '8', '--context', '2048'],
    ...['--learning-rate', '2e-3', '--warmup', '200', '--out', out],
    ...['--eval-every', '1000', '--save-every', '1000'],
  );
  const minutes = (performance.now() - began) / 60_000;
  figures[kind] = { minutes, ...perplexity(out) };
}
figures.trigram = { bitsPerByte: trigram() };
writeFileSync(
  join(work, 'figures.json'),
  `${JSON.stringify(figures, null, 2)}\n`,
);
const target = join(root, 'packages/cli/models/default');
// Half the bytes; the figures above are of the f32 weights.
const small = join(work, 'asa-bf16');
asa('convert', join(work, 'asa'), small, '--dtype', 'bf16');
for (const name of [
  'config.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
]) {
  cpSync(join(small, name), join(target, name));
}
console.log(JSON.stringify(figures, null, 2));

function perplexity(model) {
  return JSON.parse(
    asa(
      ...['eval', 'perplexity', '--backend', backend, '--json'],
      ...['--model', model, '--data', heldOut],
      ...['--characters', String(characters)],
    ),
  );
}

/** Bits a byte of an order-3 model of bytes, from all of the training text. */
function trigram() {
  const texts = (folder) =>
    readdirSync(folder, { recursive: true })
      .filter((name) => name.endsWith('.txt'))
      .sort()
      .map((name) => readFileSync(join(folder, name), 'utf8'));
  const bytes = (text) => new TextEncoder().encode(text);
  const model = ByteTrigram.train(texts(train).map(bytes));
  const held = texts(heldOut).map((text) => bytes(text.slice(0, characters)));
  const total = held.reduce((sum, text) => sum + text.length, 0);
  return held.reduce(
    (sum, text) => sum + (model.bitsPerByte(text) * text.length) / total,
    0,
  );
}
