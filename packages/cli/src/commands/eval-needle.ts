import { readFile } from 'node:fs/promises';
import {
  evaluateNeedle,
  type KeyWords,
  type NeedleCell,
  type NeedleTask,
  type NeedleTrial,
  needleCells,
} from '@asa/core';
import { Command, InvalidArgumentError } from '@commander-js/extra-typings';
import { readAll } from '../corpus';
import { ExitError, exitCode, UsageError } from '../exit';
import { interruptible } from '../interrupt';
import {
  backendOption,
  dtypeOption,
  modelOption,
  withEngine,
} from '../open-model';
import { needlePlot } from '../plot/needle';
import { plotFile, writePlot } from '../plot/render';
import { progressBar } from '../progress';
import { print, printJson, table } from '../terminal';
import { integer, list, tokenCount } from '../values';

const allTasks: NeedleTask[] = [1, 2, 3];

export const needle = new Command('needle')
  .description(
    'Hides a fact in a long text and asks for it: the single needle tasks of ' +
      'RULER. 1 hides a number in noise, 2 a number in a text, 3 a UUID in a ' +
      'text.',
  )
  .option(
    '--lengths <list>',
    "tokens of prompt and answer, such as 2k,4k,8k; the model's context when left out",
    list(tokenCount),
  )
  .option(
    '--depths <n>',
    'places of the needle, in even steps from start to end',
    integer({ min: 1, max: 1000 }),
    11,
  )
  .option('--tasks <list>', 'of 1, 2, 3', list(task), allTasks)
  .option('--samples <n>', 'needles at each place', integer({ min: 1 }), 1)
  .option('--seed <n>', 'of needles and texts', integer({ min: 0 }), 0)
  .option('--text <file...>', 'what tasks 2 and 3 hide the needle in')
  .option(
    '--words <adjectives,nouns>',
    'two files, a word a line, to make keys of',
  )
  .option(
    '--answer-tokens <n>',
    'room for the answer',
    integer({ min: 1 }),
    128,
  )
  .option('--batch <n>', 'prompts at a time', integer({ min: 1 }), 8)
  .addOption(modelOption)
  .addOption(dtypeOption)
  .addOption(backendOption)
  .option('--json', 'print JSON')
  .option('--plot <file>', 'draw a map of the accuracy, .svg or .png', plotFile)
  .addHelpText(
    'after',
    '\nExample:\n  asa eval needle --lengths 2k,8k --text novel.txt --plot needle.svg',
  )
  .action(async (options) => {
    const text = options.text && (await readAll(options.text)).join('\n');
    const words = options.words && (await readWords(options.words));
    const { tasks, samples, seed, answerTokens, batch } = options;
    const trials: NeedleTrial[] = [];
    const stopped = await withEngine(options, (engine) => {
      const lengths = options.lengths ?? [engine.config.context];
      const depths = evenSteps(options.depths);
      const total = lengths.length * tasks.length * samples * depths.length;
      const how = { tasks, lengths, depths, samples, seed };
      return interruptible(async (signal) => {
        const bar = progressBar('asking');
        try {
          for await (const trial of evaluateNeedle(engine, {
            ...how,
            ...(text !== undefined && { text }),
            ...(words && { words }),
            answerTokens,
            batch,
            signal,
          })) {
            trials.push(trial);
            bar.update(trials.length, total);
          }
        } finally {
          bar.stop();
        }
      }).catch((error: unknown) => {
        // What is done is worth being seen.
        if (error instanceof ExitError) return error;
        throw error;
      });
    });
    if (trials.length > 0) await show(trials, options);
    if (stopped) {
      const done = `stopped behind ${trials.length} trials`;
      throw new ExitError(exitCode.interrupted, done);
    }
  });

async function show(
  trials: readonly NeedleTrial[],
  { json, plot }: { json?: true | undefined; plot?: string | undefined },
): Promise<void> {
  const cells = needleCells(trials, 'depth');
  const lengths = needleCells(trials, 'length');
  if (json) printJson({ kind: 'needle', lengths, cells, trials });
  else print(describe(cells, lengths));
  if (plot) await writePlot(plot, needlePlot(cells));
}

/** A table a task: depths down, lengths across, all depths below. */
function describe(
  cells: readonly NeedleCell[],
  totals: readonly NeedleCell[],
): string {
  const tasks = [...new Set(totals.map(({ task }) => task))];
  return tasks
    .map((task) => {
      const mine = totals.filter((total) => total.task === task);
      const depths = [
        ...new Set(
          cells.flatMap((cell) =>
            cell.task === task && cell.depth !== undefined ? cell.depth : [],
          ),
        ),
      ].sort((a, b) => a - b);
      const rows = depths.map((depth) => [
        `${Math.round(100 * depth)} %`,
        ...mine.map(({ length }) => {
          const cell = cells.find(
            (one) =>
              one.task === task && one.length === length && one.depth === depth,
          );
          return cell ? `${cell.correct}/${cell.trials}` : '';
        }),
      ]);
      const all = ['all', ...mine.map(accuracy)];
      const header = [
        `S-NIAH-${task}`,
        ...mine.map(({ length }) => `${length}`),
      ];
      return table(header, [...rows, all]);
    })
    .join('\n\n');
}

function accuracy({ accuracy, standardError }: NeedleCell): string {
  const error = Number.isNaN(standardError)
    ? ''
    : ` ± ${standardError.toFixed(3)}`;
  return `${accuracy.toFixed(3)}${error}`;
}

/** From 0 to 1; a single place is the middle. */
const evenSteps = (count: number): number[] =>
  count === 1
    ? [0.5]
    : Array.from({ length: count }, (_, i) => i / (count - 1));

function task(text: string): NeedleTask {
  const found = allTasks.find((one) => String(one) === text);
  if (!found) throw new InvalidArgumentError('A task is 1, 2 or 3.');
  return found;
}

async function readWords(files: string): Promise<KeyWords> {
  const paths = files.split(',');
  const [adjectives, nouns] = await Promise.all(paths.map(wordsOf));
  if (paths.length !== 2 || !adjectives || !nouns) {
    throw new UsageError(
      `--words: must be two files with a comma between, got ${files}`,
    );
  }
  return { adjectives, nouns };
}

async function wordsOf(path: string): Promise<string[]> {
  const text = await readFile(path, 'utf8').catch((cause) => {
    throw new UsageError(`--words: ${path}: ${cause.message}`, { cause });
  });
  return text.split(/\s+/).filter((word) => word !== '');
}
