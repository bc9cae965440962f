// Trains one of the three models on what `prepare.mjs` made: copying in short
// documents first, then text and searching in long ones.
//
//   node scripts/default-model/train.mjs WORK_FOLDER asa|nsa|full
//     [--short-steps 2500] [--steps 1700] [--decay 600] [--seconds S]
//     [--dtype f32] [--backend webgpu] …
//
// WORK_FOLDER/KIND becomes a model folder with a folder of checkpoints a phase
// and `train.jsonl`: a line a step, and the held-out losses of answers every
// `--every` steps. The same command goes on where a run stopped, as it does
// behind --seconds.
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  countedTargets,
  Documents,
  hasCheckpoint,
  initialParameters,
  losses,
  Model,
  parseConfig,
  saveModel,
  Trainer,
} from '../../packages/core/dist/index.js';
import { makeFolder } from '../../packages/core/dist/node.js';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    'short-steps': { type: 'string', default: '2500' },
    steps: { type: 'string', default: '1700' },
    decay: { type: 'string', default: '600' },
    rows: { type: 'string', default: '2' },
    context: { type: 'string', default: '8192' },
    'short-tokens': { type: 'string', default: '8192' },
    'learning-rate': { type: 'string', default: '1e-3' },
    warmup: { type: 'string', default: '100' },
    seconds: { type: 'string', default: '1e9' },
    seed: { type: 'string', default: '0' },
    every: { type: 'string', default: '500' },
    dtype: { type: 'string', default: 'f32' },
    backend: { type: 'string', default: 'webgpu' },
  },
});
const [work, kind] = positionals;
if (!kind) {
  console.error('train: needs WORK_FOLDER and one of asa, nsa, full');
  process.exit(2);
}
const number = (name) => Number(values[name]);
const began = performance.now();
const seconds = () => (performance.now() - began) / 1000;
const shortContext = 512;
const peak = number('learning-rate');
const warmup = number('warmup');
const phases = [
  {
    name: 'short',
    seed: number('seed'),
    steps: number('short-steps'),
    context: shortContext,
    rows: number('short-tokens') / shortContext,
    schedule: { kind: 'constant', peak, warmup },
  },
  {
    name: 'long',
    seed: number('seed'),
    steps: number('steps'),
    context: number('context'),
    rows: number('rows'),
    schedule: {
      kind: 'warmup-stable-decay',
      peak,
      warmup,
      decay: number('decay'),
      floor: peak / 50,
    },
  },
];

const here = dirname(fileURLToPath(import.meta.url));
const tokenizerFolder = join(work, 'tokenizer');
const prepared = JSON.parse(readFileSync(join(work, 'prepared.json'), 'utf8'));
// Ids of the tokenizer's `<s>` and `</s>`.
const [bos, eos] = [0, 1];
const config = parseConfig({
  ...JSON.parse(readFileSync(join(here, `${kind}.json`), 'utf8')),
  vocabularySize: prepared.vocabularySize,
  bos,
  eos: [eos],
});
const heldOut = JSON.parse(readFileSync(join(work, 'held-out.json'), 'utf8'));

const out = join(work, kind);
mkdirSync(out, { recursive: true });
const backend = await openBackend();
let model;
let isDone = true;
for (const [i, phase] of phases.entries()) {
  if (!isDone || phase.steps === 0) continue;
  const next = phases[i + 1];
  const isBehind = next && (await hasCheckpoint(await folderOf(next)));
  if (isBehind) continue;
  model = await run(phase, model);
  isDone = seconds() < number('seconds');
}
await saveModel(await makeFolder(out), model);
for (const name of readdirSync(tokenizerFolder)) {
  cpSync(join(tokenizerFolder, name), join(out, name));
}
await backend.destroy();
process.exit(0);

/** Trains a phase to its end or the deadline; the model behind it. */
async function run({ name, ...settings }, begun) {
  const documents = documentsOf(name);
  const folder = await folderOf({ name });
  const trainer = await openTrainer(folder, documents, settings, begun);
  const { steps, rows, context } = settings;
  const start = seconds();
  let shown = start;
  while (trainer.steps < steps && seconds() < number('seconds')) {
    const event = await trainer.step();
    log({ phase: name, ...event });
    const { step, loss, gradientNorm, tokensPerSecond } = event;
    if (step % number('every') === 0 || step === steps) {
      const found = await answerLosses(trainer.model, context);
      log({ phase: name, kind: 'answers', step, losses: found });
    } else if (seconds() - shown < 2) continue;
    shown = seconds();
    const rate = Math.round(tokensPerSecond);
    console.error(
      `${shown.toFixed(0)} s  ${name} ${step}/${steps}  loss ${loss.toFixed(4)}  norm ${gradientNorm.toFixed(2)}  ${rate} targets/s`,
    );
  }
  await trainer.save(folder, { keep: 1 });
  const tokens = trainer.steps * rows * context;
  const end = { step: trainer.steps, tokens, seconds: seconds() - start };
  log({ phase: name, kind: 'end', ...end });
  const { model } = trainer;
  trainer.free();
  return model;
}

async function folderOf({ name }) {
  return makeFolder(join(out, name));
}

function documentsOf(name) {
  const bytes = readFileSync(join(work, `${name}.u16`));
  const tokens = new Uint16Array(
    bytes.buffer,
    bytes.byteOffset,
    bytes.length / 2,
  );
  const counted = readFileSync(join(work, `${name}.counted`));
  return Documents.split(tokens, eos, new Uint8Array(counted));
}

function log(event) {
  appendFileSync(join(out, 'train.jsonl'), `${JSON.stringify(event)}\n`);
}

async function openBackend() {
  if (values.backend === 'cpu') {
    const { openCpu } = await import(
      '../../packages/backend-cpu/dist/index.js'
    );
    return openCpu();
  }
  const { openWebGpu } = await import(
    '../../packages/backend-gpu/dist/webgpu.js'
  );
  // The kernels' indices are checked by the tests.
  return openWebGpu({ boundsChecks: false });
}

/** Goes on from a checkpoint, else with `start`, else with new weights. */
async function openTrainer(folder, documents, settings, start) {
  const { dtype } = values;
  if (await hasCheckpoint(folder)) {
    return Trainer.resume(folder, backend, documents, settings, dtype);
  }
  const { seed } = settings;
  const model =
    start ??
    new Model(
      backend,
      config,
      await initialParameters(backend, config, { seed, dtype }),
    );
  return new Trainer(model, documents, settings);
}

/** Mean nats a token of the held-out answers, by kind and length. */
async function answerLosses(model, context) {
  const groups = new Map();
  for (const { kind, length, tokens, counted } of heldOut) {
    if (length > context) continue;
    const targets = tokens.map((token, i) => (counted[i] ? token : -1));
    const name = `${kind}, ${length}`;
    const example = { tokens: tokens.slice(0, -1), targets: targets.slice(1) };
    groups.set(name, [...(groups.get(name) ?? []), example]);
  }
  const means = {};
  for (const [name, examples] of groups) {
    const nats = await losses(model, examples);
    const sum = nats.reduce((total, one) => total + one, 0);
    means[name] = Number((sum / countedTargets(examples)).toFixed(3));
  }
  console.error(JSON.stringify(means).replaceAll('"', ''));
  return means;
}
