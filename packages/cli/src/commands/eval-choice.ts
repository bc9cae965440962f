import { basename, extname } from 'node:path';
import {
  type ChoiceItem,
  type ChoiceResult,
  type ChoiceSummary,
  type Engine,
  evaluateChoices,
  type Proportion,
  parseChoices,
  summarizeChoices,
} from '@asa/core';
import { Command } from '@commander-js/extra-typings';
import { readAll } from '../corpus';
import { ExitError, exitCode } from '../exit';
import { interruptible } from '../interrupt';
import {
  backendOption,
  dtypeOption,
  modelOption,
  withEngine,
} from '../open-model';
import { choicePlot } from '../plot/choice';
import { plotFile, writePlot } from '../plot/render';
import { progressBar } from '../progress';
import { print, printJson, table } from '../terminal';
import { integer } from '../values';

/** A task's file and what came of it. */
interface ChoiceTask extends ChoiceSummary {
  readonly task: string;
}

export const choice = new Command('choice')
  .description(
    'Multiple choice by likelihood: ARC, BoolQ, COPA, HellaSwag, LAMBADA, ' +
      'OpenBookQA, PIQA, WinoGrande and whatever has their form.',
  )
  .requiredOption(
    '--data <file...>',
    'JSON lines with query, choices, gold; context_options, continuation, gold; or context, continuation; or six lines an item in a .txt',
  )
  .option(
    '--limit <n>',
    'only the first items of each file',
    integer({ min: 1 }),
  )
  .option('--batch <n>', 'choices at a time', integer({ min: 1 }), 32)
  .addOption(modelOption)
  .addOption(dtypeOption)
  .addOption(backendOption)
  .option('--json', 'print JSON')
  .option('--plot <file>', 'draw the accuracies, .svg or .png', plotFile)
  .addHelpText(
    'after',
    '\nExample:\n  asa eval choice --data piqa.jsonl arc_easy.jsonl --limit 500',
  )
  .action(async (options) => {
    // All files are read before the model: a bad line costs no time.
    const texts = await readAll(options.data);
    const tasks = options.data.map((path, i) => ({
      task: basename(path, extname(path)),
      items: parseChoices(texts[i] ?? '', path).slice(0, options.limit),
    }));
    const done: ChoiceTask[] = [];
    const stopped = await withEngine(options, (engine) =>
      interruptible(async (signal) => {
        for (const { task, items } of tasks) {
          const { batch } = options;
          const results = await run(engine, task, items, { batch, signal });
          done.push({ task, ...summarizeChoices(results) });
        }
      }).catch((error: unknown) => {
        // What is done is worth being seen.
        if (error instanceof ExitError) return error;
        throw error;
      }),
    );
    if (options.json) printJson({ kind: 'choice', tasks: done });
    else print(describe(done));
    if (options.plot && done.length > 0) {
      await writePlot(options.plot, choicePlot(done));
    }
    if (stopped) {
      throw new ExitError(
        exitCode.interrupted,
        `stopped behind ${done.length} of ${tasks.length} tasks`,
      );
    }
  });

async function run(
  engine: Engine,
  task: string,
  items: readonly ChoiceItem[],
  how: { batch: number; signal: AbortSignal },
): Promise<ChoiceResult[]> {
  const results: ChoiceResult[] = [];
  const bar = progressBar(task);
  try {
    for await (const result of evaluateChoices(engine, items, how)) {
      results.push(result);
      bar.update(results.length, items.length);
    }
  } finally {
    bar.stop();
  }
  return results;
}

function describe(tasks: readonly ChoiceTask[]): string {
  return table(
    ['task', 'items', 'acc', 'acc_norm', 'chance', 'perplexity'],
    tasks.map(({ task, acc, accNorm, chance, perplexity }) => [
      task,
      String(acc.trials),
      share(acc),
      accNorm ? share(accNorm) : '',
      chance?.toFixed(3) ?? '',
      perplexity?.toPrecision(4) ?? '',
    ]),
  );
}

function share({ accuracy, standardError }: Proportion): string {
  const error = Number.isNaN(standardError)
    ? ''
    : ` ± ${standardError.toFixed(3)}`;
  return `${accuracy.toFixed(3)}${error}`;
}
