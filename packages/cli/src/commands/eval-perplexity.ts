import { basename, resolve } from 'node:path';
import {
  evaluateTexts,
  loadModel,
  loadTokenizer,
  type Perplexity,
} from '@asa/core';
import { openFolder } from '@asa/core/node';
import { Command } from '@commander-js/extra-typings';
import { withBackend } from '../backends';
import { readAll, textFiles } from '../corpus';
import { UsageError } from '../exit';
import { backendOption, dtypeOption, modelOption } from '../open-model';
import { positionPlot } from '../plot/positions';
import { plotFile, writePlot } from '../plot/render';
import { withProgress } from '../progress';
import { grouped, print, printJson } from '../terminal';
import { integer } from '../values';

export const perplexity = new Command('perplexity')
  .description('How well a model predicts text: bits a byte, perplexity.')
  .requiredOption('--data <path...>', 'text files, or folders of .txt files')
  .addOption(modelOption)
  .option(
    '--context <n>',
    "most tokens that a prediction sees; the model's context when left out",
    integer({ min: 2 }),
  )
  .option(
    '--stride <n>',
    'tokens from one window to the next; the context when left out',
    integer({ min: 1 }),
  )
  .option(
    '--characters <n>',
    'only the first characters of each file',
    integer({ min: 1 }),
  )
  .addOption(dtypeOption)
  .addOption(backendOption)
  .option('--json', 'print JSON')
  .option(
    '--plot <file>',
    'draw the loss over the tokens seen before, .svg or .png',
    plotFile,
  )
  .addHelpText(
    'after',
    '\nExample:\n  asa eval perplexity --data ./held-out.txt --json',
  )
  .action(async (options) => {
    const files = await textFiles(options.data);
    const texts = (await readAll(files)).map((text) =>
      start(text, options.characters),
    );
    const folder = await openFolder(options.model);
    const result = await withBackend(options.backend, async (backend) => {
      const { dtype, context, stride } = options;
      const { model } = await withProgress('loading', (onProgress) =>
        loadModel(folder, backend, { dtype, onProgress }),
      );
      const { vocabularySize } = model.config;
      const tokenizer = await loadTokenizer(folder, vocabularySize);
      if (!tokenizer) {
        throw new UsageError('--model: the folder has no tokenizer.json');
      }
      // Ctrl-C has nothing to keep here: it ends the program as it is.
      return evaluateTexts(model, tokenizer, texts, { context, stride });
    });
    if (options.json) printJson({ kind: 'perplexity', ...result });
    else print(describe(result));
    if (options.plot) {
      const { positions } = result;
      const name = basename(resolve(options.model));
      await writePlot(options.plot, positionPlot([{ name, positions }]));
    }
  });

/** The first characters of a text; none of them is cut in half. */
const start = (text: string, count = text.length) =>
  text.slice(0, count).replace(/[\uD800-\uDBFF]$/, '');

function describe(result: Perplexity): string {
  const { bitsPerByte = Number.NaN, perplexity, loss, tokens } = result;
  const { standardError } = result;
  // One window alone says nothing about how others would differ.
  const error = Number.isNaN(standardError)
    ? ''
    : ` ± ${standardError.toFixed(4)}`;
  return (
    `${bitsPerByte.toFixed(4)} bits a byte, ` +
    `perplexity ${perplexity.toFixed(3)}, ` +
    `loss ${loss.toFixed(4)}${error} nats a token over ${grouped(tokens)} tokens`
  );
}
