import { evaluateTexts, loadModel, loadTokenizer } from '@asa/core';
import { openFolder } from '@asa/core/node';
import { Command } from '@commander-js/extra-typings';
import { openBackend } from '../backends';
import { readAll, textFiles } from '../corpus';
import { UsageError } from '../exit';
import { interruptible } from '../interrupt';
import { backendOption, dtypeOption, modelOption } from '../open-model';
import { print, printJson } from '../terminal';
import { integer } from '../values';

const perplexity = new Command('perplexity')
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
  .addHelpText(
    'after',
    '\nExample:\n  asa eval perplexity --data ./held-out.txt --json',
  )
  .action(async (options) => {
    const files = await textFiles(options.data);
    const texts = (await readAll(files)).map((text) =>
      text.slice(0, options.characters),
    );
    const folder = await openFolder(options.model);
    const backend = await openBackend(options.backend);
    try {
      const { model } = await loadModel(folder, backend, {
        dtype: options.dtype,
      });
      const { vocabularySize } = model.config;
      const tokenizer = await loadTokenizer(folder, vocabularySize);
      if (!tokenizer) {
        throw new UsageError(`${options.model}: holds no tokenizer.json`);
      }
      const { context, stride } = options;
      const result = await interruptible((signal) =>
        evaluateTexts(model, tokenizer, texts, {
          ...(context !== undefined && { context }),
          ...(stride !== undefined && { stride }),
          signal,
        }),
      );
      if (options.json) printJson(result);
      else {
        const { bitsPerByte = Number.NaN, standardError, tokens } = result;
        print(
          `${bitsPerByte.toFixed(4)} bits a byte, perplexity ${result.perplexity.toFixed(3)}, loss ${result.loss.toFixed(4)} ± ${standardError.toFixed(4)} nats a token over ${tokens} tokens`,
        );
      }
    } finally {
      await backend.destroy();
    }
  });

export const command = new Command('eval')
  .description('Measures what a model can do.')
  .addCommand(perplexity);
