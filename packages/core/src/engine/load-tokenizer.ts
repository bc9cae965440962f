import { ConfigError } from '../errors';
import { type Folder, readText } from '../io/files';
import { Tokenizer } from '../text/tokenizer';

/** Opens a folder's `tokenizer.json`, if there is one. */
export async function loadTokenizer(
  folder: Folder,
  modelVocabularySize: number,
): Promise<Tokenizer | undefined> {
  const file = await readJson(folder, 'tokenizer.json');
  if (file === undefined) return undefined;
  const config = await readJson(folder, 'tokenizer_config.json');
  const path = pathOf(folder, 'tokenizer.json');
  return Tokenizer.fromJson(file, config ?? {}, path, modelVocabularySize);
}

async function readJson(folder: Folder, name: string): Promise<unknown> {
  if (!(await folder.has(name))) return undefined;
  const text = await readText(folder, name);
  try {
    return JSON.parse(text);
  } catch (cause) {
    const rule = `not JSON, ${String(cause)}`;
    throw new ConfigError(pathOf(folder, name), undefined, rule, { cause });
  }
}

function pathOf(folder: Folder, name: string): string {
  return `${folder.path}/${name}`;
}
