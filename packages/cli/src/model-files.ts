import { type Folder, withFile } from '@asa/core';

/** A tokenizer on disk. */
export const tokenizerFiles = ['tokenizer.json', 'tokenizer_config.json'];

/** What belongs to a model beside its configuration and its weights. */
export const companionFiles = [
  ...tokenizerFiles,
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
  'README.md',
  'LICENSE',
];

/** Copies those of the files that the source has. */
export async function copyFiles(
  source: Folder,
  target: Folder,
  names: readonly string[],
): Promise<void> {
  for (const name of names) {
    if (!(await source.has(name))) continue;
    const bytes = await withFile(source, name, (file) =>
      file.read(0, file.size),
    );
    await target.write(name, (sink) => sink.write(bytes));
  }
}
