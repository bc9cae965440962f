import { trainBpe, writeText } from '@asa/core';
import { makeFolder } from '@asa/core/node';
import { Command } from '@commander-js/extra-typings';
import { readAll, textFiles } from '../corpus';
import { withProgress } from '../progress';
import { note } from '../terminal';
import { integer } from '../values';

const train = new Command('train')
  .description('Trains a byte-pair vocabulary on text.')
  .requiredOption('--data <path...>', 'text files, or folders of .txt files')
  .requiredOption('--out <folder>', 'where tokenizer.json goes')
  .option(
    '--vocabulary <n>',
    'tokens, special ones and bytes included',
    integer({ min: 264, max: 65_536 }),
    4096,
  )
  .addHelpText(
    'after',
    '\nExample:\n  asa tokenizer train --data ./books --vocabulary 4096 --out ./tokenizer',
  )
  .action(async ({ data, out, vocabulary }) => {
    const files = await textFiles(data);
    const folder = await makeFolder(out);
    const texts = await readAll(files);
    const trained = await withProgress('merging', async (update) =>
      trainBpe(texts, {
        vocabularySize: vocabulary,
        onProgress: ({ done, total }) => total && update(done, total),
      }),
    );
    await writeTokenizer(folder, trained);
    note(`wrote ${out}, ${vocabulary} tokens from ${files.length} files`);
  });

export const command = new Command('tokenizer')
  .description('Makes tokenizers.')
  .addCommand(train);

/** Writes a trained tokenizer's two files. */
export async function writeTokenizer(
  folder: Awaited<ReturnType<typeof makeFolder>>,
  { tokenizerJson, tokenizerConfig }: ReturnType<typeof trainBpe>,
): Promise<void> {
  const json = (value: object) => `${JSON.stringify(value, null, 2)}\n`;
  await writeText(folder, 'tokenizer.json', json(tokenizerJson));
  await writeText(folder, 'tokenizer_config.json', json(tokenizerConfig));
}
