import { type Folder, trainBpe, writeText } from '@asa/core';
import { readAll } from './corpus';
import { withProgress } from './progress';
import { integer } from './values';

/** Special tokens and bytes at least; at most what 16 bits can number. */
export const vocabularyRange = integer({ min: 264, max: 65_536 });

export const defaultVocabulary = 4096;

/**
 * Trains a byte-pair vocabulary on text files and writes its two files.
 * @throws ArgumentError when the text is too poor for that many tokens.
 */
export async function trainTokenizer(
  files: readonly string[],
  vocabularySize: number,
  target: Folder,
): Promise<void> {
  const texts = await readAll(files);
  const trained = await withProgress('merging', async (update) =>
    trainBpe(texts, {
      vocabularySize,
      onProgress: ({ done, total }) => total && update(done, total),
    }),
  );
  const json = (value: object) => `${JSON.stringify(value, null, 2)}\n`;
  await writeText(target, 'tokenizer.json', json(trained.tokenizerJson));
  const config = json(trained.tokenizerConfig);
  await writeText(target, 'tokenizer_config.json', config);
}
