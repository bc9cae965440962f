import { readFile } from 'node:fs/promises';
import type { FloatType, ModelConfig } from '@asa/core';
import type {
  BenchEvent,
  BenchModel,
  BenchOptions,
  BenchReport,
} from '@asa/core/bench';
import { Command, Option } from '@commander-js/extra-typings';
import { version } from '../../package.json';
import { openBackend } from '../backends';
import { type Earlier, earlierRows, formats, lineOf } from '../bench-report';
import { exitCode, UsageError } from '../exit';
import { interruptible } from '../interrupt';
import { backendOption } from '../open-model';
import { embeddedModel } from '../paths';
import { parsePreset } from '../presets';
import { progressBar } from '../progress';
import { note, print } from '../terminal';
import { integer, list, oneOf, real, tokenCount } from '../values';

const suites = [
  'matmul',
  'operators',
  'layers',
  'model',
  'training',
] as const satisfies BenchOptions['suites'];
const dtypes = ['f32', 'f16', 'bf16', 'f64'] as const;

export const command = new Command('bench')
  .description(
    'Measures a backend: matrix products, attention operators, whole layers, ' +
      'prefill and decoding of a model, training. Each figure stands behind a ' +
      'comparison with the reference.',
  )
  .addOption(backendOption)
  .option('--suite <names>', `some of ${suites.join(',')}`, list(oneOf(suites)))
  .option(
    '--only <texts>',
    'cases with one of these in their names, such as pp,tg or selected',
    list((text) => text),
  )
  .option(
    '--context <tokens>',
    'tokens of the cases, such as 2k,8k,32k',
    list(tokenCount),
  )
  .option(
    '--dtype <types>',
    'types of operands, weights and caches, such as f32,f16',
    list(oneOf(dtypes)),
    ['f32'] as FloatType[],
  )
  .option('--model <folder>', 'a model folder; the embedded one if left out')
  .option(
    '--preset <name>',
    'a preset with random weights instead of a model, such as 340m-nsa',
    parsePreset,
  )
  .option(
    '--generate <n>',
    'tokens that decoding generates',
    integer({ min: 1 }),
  )
  .option('--chunk <n>', 'tokens of a chunk of prefill', integer({ min: 1 }))
  .option('--step-tokens <n>', 'tokens of a training step', tokenCount)
  .addOption(
    new Option(
      '--profile <name>',
      'widths of operators and layers; small for the CPU, else large',
    ).choices(['small', 'large'] as const),
  )
  .option(
    '--repetitions <n>',
    'of each case; 3 of one that takes more than a second',
    integer({ min: 1, max: 10_000 }),
    20,
  )
  .option(
    '--seconds <x>',
    'measuring time of each case',
    real({ above: 0, max: 3600 }),
    0.5,
  )
  .addOption(
    new Option('-o, --output <format>', 'what to print')
      .choices(['md', 'csv', 'json'] as const)
      .default('md' as const),
  )
  .option('--against <file>', 'earlier figures, made with -o json')
  .addHelpText(
    'after',
    `
pp2048 is a prompt of 2048 tokens, tg128 @ d2048 generates 128 tokens behind
2048 others. Percentages are of the best matrix product and of the bandwidth of
a large copy or sum, measured in the same run.

Examples:
  asa bench --suite operators --context 2k,8k --dtype f32,f16
  asa bench --only pp,tg --preset 340m --context 8k -o json > now.json
  asa bench --only pp,tg --preset 340m --context 8k --against now.json`,
  )
  .action(async (options) => {
    const earlier = options.against
      ? await readEarlier(options.against)
      : undefined;
    const model = await benchModel(options);
    const { bench, profiles } = await import('@asa/core/bench');
    const { openCpu } = await import('@asa/backend-cpu');
    const backend = await openBackend(options.backend);
    const reference = await openCpu({ poison: true });
    try {
      const size = backend.name === 'cpu' ? 'small' : 'large';
      const report = await interruptible((signal) =>
        follow(
          bench({
            backend,
            reference,
            model,
            signal,
            profile: profiles[options.profile ?? size],
            suites: options.suite,
            only: options.only,
            contexts: options.context,
            dtypes: options.dtype,
            generate: options.generate,
            chunk: options.chunk,
            stepTokens: options.stepTokens,
            repetitions: options.repetitions,
            seconds: options.seconds,
          }),
        ),
      );
      print(formats[options.output]({ version, ...report }, earlier));
      process.exitCode = codeOf(report);
    } finally {
      await reference.destroy();
      await backend.destroy();
    }
  });

/** Shows what is done, on stderr; returns what was measured. */
async function follow(events: AsyncIterable<BenchEvent>): Promise<BenchReport> {
  const bar = progressBar('measuring');
  try {
    for await (const event of events) {
      if (event.type === 'start') bar.update(event.done, event.total);
      else if (event.type === 'report') return event.report;
      else if (!process.stderr.isTTY) note(lineOf(event.row));
    }
  } finally {
    bar.stop();
  }
  throw new Error('internal: the benchmark ended without a report');
}

function codeOf({ rows, passed, complete }: BenchReport): number {
  if (!passed) return exitCode.mismatch;
  if (!complete) return exitCode.interrupted;
  const isFailed = rows.some(({ status }) => status === 'failed');
  return isFailed ? exitCode.failure : exitCode.ok;
}

async function readEarlier(path: string): Promise<Earlier> {
  const text = await readFile(path, 'utf8').catch((cause) => {
    throw new UsageError(`--against: ${cause.message}`, { cause });
  });
  try {
    return earlierRows(JSON.parse(text));
  } catch (cause) {
    const rule = cause instanceof Error ? cause.message : cause;
    throw new UsageError(
      `--against: ${path} must be what asa bench -o json prints, ${rule}`,
      { cause },
    );
  }
}

interface ModelChoice {
  readonly model?: string | undefined;
  readonly preset?:
    | { readonly name: string; readonly config: ModelConfig }
    | undefined;
  readonly context?: readonly number[] | undefined;
  readonly generate?: number | undefined;
}

/** Room behind the longest context: as many tokens as anyone generates. */
const ROOM = 4096;

async function benchModel(choice: ModelChoice): Promise<BenchModel> {
  const { model, preset, context = [] } = choice;
  if (preset) {
    if (model !== undefined) {
      throw new UsageError('bench: give --model or --preset, not both');
    }
    const { name, config } = preset;
    const room = Math.max(ROOM, (choice.generate ?? 0) + 1);
    const needed = Math.max(config.context, ...context) + room;
    return { name, config: { ...config, context: needed } };
  }
  const { loadModel, readConfig } = await import('@asa/core');
  const { openFolder } = await import('@asa/core/node');
  const folder = await openFolder(model ?? embeddedModel);
  const { config } = await readConfig(folder);
  return {
    name: model ?? 'embedded model',
    config,
    load: async (backend, dtype) =>
      (await loadModel(folder, backend, { dtype })).model,
  };
}
