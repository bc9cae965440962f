import { makeFolder } from '@asa/core/node';
import { Command } from '@commander-js/extra-typings';
import { textFiles } from '../corpus';
import { note } from '../terminal';
import {
  defaultVocabulary,
  trainTokenizer,
  vocabularyRange,
} from '../train-tokenizer';

const train = new Command('train')
  .description('Trains a byte-pair vocabulary on text.')
  .requiredOption('--data <path...>', 'text files, or folders of .txt files')
  .requiredOption('--out <folder>', 'where tokenizer.json goes')
  .option(
    '--vocabulary <n>',
    'tokens, special ones and bytes included',
    vocabularyRange,
    defaultVocabulary,
  )
  .addHelpText(
    'after',
    '\nExample:\n  asa tokenizer train --data ./books --vocabulary 4096 --out ./tokenizer',
  )
  .action(async ({ data, out, vocabulary }) => {
    const files = await textFiles(data);
    await trainTokenizer(files, vocabulary, await makeFolder(out));
    note(`wrote ${out}, ${vocabulary} tokens from ${files.length} files`);
  });

export const command = new Command('tokenizer')
  .description('Makes tokenizers.')
  .addCommand(train);
