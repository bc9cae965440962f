import { appendFile, readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import {
  type Backend,
  Documents,
  encodeCorpus,
  type Folder,
  hasCheckpoint,
  initialParameters,
  loadTokenizer,
  Model,
  type ModelConfig,
  type PerplexityOptions,
  parseConfig,
  readConfig,
  saveModel,
  type Tokenizer,
  type TrainConfigInput,
  type TrainEvent,
  Trainer,
  train,
} from '@asa/core';
import { makeFolder, openFolder } from '@asa/core/node';
import {
  Command,
  InvalidArgumentError,
  Option,
} from '@commander-js/extra-typings';
import { backendNames, deviceOpener, withBackends } from '../backends';
import { readTexts, textFiles } from '../corpus';
import { ExitError, exitCode, UsageError } from '../exit';
import { interruptible } from '../interrupt';
import { copyFiles, tokenizerFiles } from '../model-files';
import { parsePreset } from '../presets';
import { withProgress } from '../progress';
import { counted, grouped, note } from '../terminal';
import {
  defaultVocabulary,
  trainTokenizer,
  vocabularyRange,
} from '../train-tokenizer';
import { trainingMonitor } from '../training-monitor';
import { integer, list, real } from '../values';

const positive = integer({ min: 1 });
const share = real({ min: 0 });

/** Parses numbers of devices such as `0,1`. */
function deviceList(text: string): number[] {
  const devices = list(integer({ min: 0 }))(text);
  if (new Set(devices).size === devices.length) return devices;
  throw new InvalidArgumentError('No device may come twice.');
}

export const command = new Command('train')
  .description(
    'Trains a model on text. The folder that comes out is a model folder; ' +
      'checkpoints and the log are beside it.',
  )
  .requiredOption('--data <path...>', 'text files, or folders of .txt files')
  .requiredOption('--out <folder>', 'where the model goes')
  .addOption(
    new Option(
      '--preset <name>',
      'tiny, 340m, 1.3b, with -asa, -nsa or -full behind',
    )
      .argParser(parsePreset)
      .default(parsePreset('tiny'), 'tiny'),
  )
  .option(
    '--config <file>',
    "a model folder, its config.json, or a file of the library's fields, instead of a preset",
  )
  .option(
    '--tokenizer <folder>',
    "a tokenizer.json's folder; one is trained when left out",
  )
  .option(
    '--vocabulary <n>',
    'tokens of a tokenizer that is trained',
    vocabularyRange,
    defaultVocabulary,
  )
  .option('--steps <n>', 'steps of the run', positive)
  .option('--tokens <n>', 'about as many tokens, instead of --steps', positive)
  .option(
    '--minutes <n>',
    'save and stop after as many minutes',
    // A timer holds 31 bits of milliseconds.
    real({ above: 0, max: 35_000 }),
  )
  .option(
    '--context <n>',
    "tokens of a row; the model's context when left out",
    positive,
  )
  .option('--batch <n>', 'rows of one forward pass', positive, 4)
  .option(
    '--accumulate <n>',
    'forward passes of one step; one for each device when left out: give it to go on with another number of devices',
    positive,
  )
  .option('--learning-rate <x>', 'its peak', share, 1e-3)
  .option('--warmup <steps>', 'steps up to the peak', integer({ min: 0 }), 50)
  .addOption(
    new Option('--schedule <kind>', 'what follows the warm-up')
      .choices(['cosine', 'wsd', 'constant'])
      .default('cosine' as const),
  )
  .option(
    '--decay <steps>',
    'last steps of wsd, a tenth when left out',
    positive,
  )
  .option('--floor <x>', 'learning rate at the end', share)
  .option('--weight-decay <x>', 'of matrices', share, 0.1)
  .option('--clip <x>', 'largest gradient norm, 0 for none', share, 1)
  .option(
    '--seed <n>',
    'of the first weights and of the order',
    integer({ min: 0, max: 2 ** 32 - 1 }),
    0,
  )
  .addOption(
    new Option(
      '--dtype <type>',
      'of weights and activations; sums, masters and moments are f32',
    )
      .choices(['f32', 'f16', 'bf16'])
      .default('f32' as const),
  )
  .option('--validation <path...>', 'held-out text, as --data')
  .option(
    '--validation-tokens <n>',
    'tokens of it that are used',
    positive,
    32_768,
  )
  .option(
    '--eval-every <steps>',
    'steps between two held-out losses',
    positive,
    200,
  )
  .option(
    '--save-every <steps>',
    'steps between two checkpoints',
    positive,
    200,
  )
  .option('--keep <n>', 'checkpoints to keep', positive, 1)
  .option('--resume', 'go on from the last checkpoint in --out')
  .option(
    '--log <file>',
    'JSON lines of the run; train.jsonl in --out when left out',
  )
  .addOption(
    new Option('--backend <name>', 'what computes')
      .choices(backendNames)
      .default('auto'),
  )
  .option(
    '--device <list>',
    'with --backend cuda: numbers of the cards, such as 0,1,2,3; they share out the passes of a step, so --accumulate is at least as many',
    deviceList,
  )
  .addHelpText(
    'after',
    '\nExample:\n  asa train --data ./books --preset tiny --tokens 1e6 --out ./model',
  )
  .action(async (options) => {
    checkLength(options);
    checkDevices(options);
    const out = await makeFolder(options.out);
    await checkIsFree(out, options);
    const files = await textFiles(options.data);
    const validation = await textFiles(options.validation ?? []);
    const tokenizer = await tokenizerFor(out, files, options);
    const model = await modelConfig(options, tokenizer);
    const documents = await encode(tokenizer, files, 'reading');
    const held =
      validation.length > 0
        ? firstTokens(
            await encode(tokenizer, validation, 'reading'),
            options.validationTokens,
          )
        : undefined;
    const config = trainConfig(options, model);
    await withBackends(options.backend, options.device, async (backends) => {
      const trainer = await openTrainer(
        { out, backends, documents, config, model },
        options,
      );
      const log = options.log ?? join(options.out, 'train.jsonl');
      const reason = await interruptible((signal) =>
        runTraining(trainer, out, {
          log,
          signal: withDeadline(signal, options.minutes),
          checkpoints: {
            folder: out,
            every: options.saveEvery,
            keep: options.keep,
            alsoWrite: (version) => copyFiles(out, version, tokenizerFiles),
          },
          evaluation: held && {
            documents: held,
            every: options.evalEvery,
            context: config.context,
            bytesOf: (id) => tokenizer.tokenBytes(id).length,
          },
        }).then((end) =>
          end === 'aborted' && signal.aborted ? 'interrupted' : end,
        ),
      );
      if (reason === 'interrupted') {
        throw new ExitError(
          exitCode.interrupted,
          `stopped at step ${trainer.steps}; --resume goes on from there`,
        );
      }
    });
  });

type Options = ReturnType<typeof command.opts>;

/** Runs to the end or to the signal; leaves a model folder behind. */
async function runTraining(
  trainer: Trainer,
  out: Folder,
  {
    log,
    signal,
    checkpoints,
    evaluation,
  }: {
    log: string;
    signal: AbortSignal;
    checkpoints: NonNullable<Parameters<typeof train>[1]>['checkpoints'];
    evaluation:
      | (PerplexityOptions & { documents: Documents; every: number })
      | undefined;
  },
): Promise<'done' | 'aborted'> {
  const { steps } = trainer.config;
  const monitor = trainingMonitor(steps === endless ? undefined : steps);
  let reason: 'done' | 'aborted' = 'done';
  try {
    for await (const event of train(trainer, {
      signal,
      ...(checkpoints && { checkpoints }),
      ...(evaluation && { evaluation }),
    })) {
      monitor.show(event);
      await appendFile(log, `${JSON.stringify(event satisfies TrainEvent)}\n`);
      if (event.kind === 'end') reason = event.reason;
    }
  } finally {
    monitor.stop();
  }
  const { backend, config } = trainer.model;
  await saveModel(out, new Model(backend, config, trainer.optimizer.masters));
  return reason;
}

/** Steps of a run that only --minutes ends. */
const endless = 1e9;

/** The schedules but the constant one need to know where they end. */
function checkLength({ steps, tokens, minutes, schedule }: Options): void {
  if (steps !== undefined || tokens !== undefined) return;
  if (minutes !== undefined && schedule === 'constant') return;
  throw new UsageError(
    'give --steps or --tokens; with --schedule constant, --minutes will do',
  );
}

/** Before anything is written. */
function checkDevices({ backend, device, accumulate }: Options): void {
  if (device === undefined) return;
  deviceOpener(backend);
  if (accumulate === undefined || accumulate >= device.length) return;
  throw new UsageError(
    `--accumulate: must be at least ${device.length}, a forward pass for each device, got ${accumulate}`,
  );
}

/** Before the new tokenizer takes the place of the old run's. */
async function checkIsFree(out: Folder, { resume }: Options): Promise<void> {
  if (resume) return;
  if (await hasCheckpoint(out)) {
    throw new UsageError(
      `--out: ${out.path} holds a run; --resume goes on with it, or give another folder`,
    );
  }
  if (await out.has('config.json')) {
    throw new UsageError(
      `--out: ${out.path} holds a model; give another folder`,
    );
  }
}

/** The run's own where it goes on, else the one given, else a new one. */
async function tokenizerFor(
  out: Folder,
  files: readonly string[],
  { tokenizer: given, vocabulary, resume }: Options,
): Promise<Tokenizer> {
  if (!resume && given) {
    await copyFiles(await openFolder(given), out, tokenizerFiles);
  } else if (!resume) {
    await trainTokenizer(files, vocabulary, out);
  }
  const tokenizer = await loadTokenizer(out, 65_536);
  if (tokenizer) return tokenizer;
  throw new UsageError(`${given ?? out.path}: holds no tokenizer.json`);
}

/** The model to train: its vocabulary and special tokens are the tokenizer's. */
async function modelConfig(
  options: Options,
  tokenizer: Tokenizer,
): Promise<ModelConfig> {
  const { bosId, eosId, vocabularySize } = tokenizer;
  const base = options.config
    ? await readModelConfig(options.config)
    : options.preset.config;
  const context = Math.max(base.context, options.context ?? 0);
  return parseConfig(
    {
      ...base,
      context,
      vocabularySize,
      bos: bosId,
      eos: eosId === undefined ? [] : [eosId],
    },
    options.config ?? `preset ${options.preset.name}`,
  );
}

async function readModelConfig(path: string): Promise<ModelConfig> {
  // A model's own file has the ecosystem's names in it, as its folder says.
  const folder = basename(path) === 'config.json' ? dirname(path) : path;
  if (folder !== path || !path.endsWith('.json')) {
    return (await readConfig(await openFolder(folder))).config;
  }
  const text = await readFile(path, 'utf8').catch((cause) => {
    throw new UsageError(`${path}: ${cause.message}`, { cause });
  });
  try {
    return parseConfig(
      { vocabularySize: 1, ...JSON.parse(text), bos: undefined, eos: [] },
      path,
    );
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    throw new UsageError(`${path}: not JSON, ${cause.message}`, { cause });
  }
}

async function encode(
  tokenizer: Tokenizer,
  files: readonly string[],
  label: string,
): Promise<Documents> {
  const tokens = await withProgress(label, (update) =>
    encodeCorpus(tokenizer, readTexts(files), {
      onProgress: ({ documents }) => update(documents, files.length),
    }),
  );
  const { eosId } = tokenizer;
  note(`${grouped(tokens.length)} tokens in ${counted(files.length, 'file')}`);
  return eosId === undefined
    ? Documents.of([tokens])
    : Documents.split(tokens, eosId);
}

/** About `count` tokens, the same share of the start of every document. */
function firstTokens(documents: Documents, count: number): Documents {
  const share = Math.ceil(count / documents.count);
  return Documents.of(
    Array.from({ length: documents.count }, (_, i) =>
      documents.at(i).subarray(0, share),
    ),
  );
}

function trainConfig(options: Options, model: ModelConfig): TrainConfigInput {
  const { batch, device, steps, tokens, warmup, clip } = options;
  const { accumulate = device?.length ?? 1 } = options;
  const context = options.context ?? model.context;
  const rows = batch * accumulate;
  const byTokens = tokens && Math.ceil(tokens / (rows * context));
  const all = steps ?? byTokens ?? endless;
  const peak = options.learningRate;
  const common = { peak, warmup: Math.min(warmup, Math.floor(all / 2)) };
  const floor = options.floor ?? peak / 10;
  const decay = options.decay ?? Math.ceil(all / 10);
  return {
    seed: options.seed,
    steps: all,
    context,
    rows,
    microRows: batch,
    weightDecay: options.weightDecay,
    clip: clip === 0 ? null : clip,
    schedule:
      options.schedule === 'constant'
        ? { kind: 'constant', ...common }
        : options.schedule === 'cosine'
          ? { kind: 'cosine', ...common, floor }
          : { kind: 'warmup-stable-decay', ...common, decay, floor },
  };
}

async function openTrainer(
  run: {
    out: Folder;
    backends: readonly [Backend, ...Backend[]];
    documents: Documents;
    config: TrainConfigInput;
    model: ModelConfig;
  },
  { resume, seed, dtype }: Options,
): Promise<Trainer> {
  const { out, documents, config, model } = run;
  const [backend, ...replicas] = run.backends;
  if (resume) {
    const trainer = await Trainer.resume(
      out,
      backend,
      documents,
      config,
      dtype,
      { replicas },
    );
    note(`going on behind step ${trainer.steps}`);
    return trainer;
  }
  const parameters = await withProgress('first weights', (onProgress) =>
    initialParameters(backend, model, { seed, dtype, onProgress }),
  );
  return new Trainer(new Model(backend, model, parameters), documents, config, {
    replicas,
  });
}

function withDeadline(
  signal: AbortSignal,
  minutes: number | undefined,
): AbortSignal {
  if (minutes === undefined) return signal;
  // A timer takes whole milliseconds.
  const deadline = AbortSignal.timeout(Math.ceil(minutes * 60_000));
  return AbortSignal.any([signal, deadline]);
}
