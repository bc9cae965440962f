import { z } from 'zod';
import { ConfigError } from '../errors';

const step = z.looseObject({ type: z.string() }).nullish();

const addedToken = z.looseObject({
  id: z.int().nonnegative(),
  content: z.string().min(1),
  special: z.boolean().default(false),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  single_word: z.boolean().default(false),
});

/** A table by hand: zod is slow on it and loses a key called `__proto__`. */
const table = z.custom<Readonly<Record<string, unknown>>>(
  (value) =>
    typeof value === 'object' && value !== null && !Array.isArray(value),
  'expected an object of ids by token',
);

const unused = z
  .literal('', 'word prefixes and suffixes are not supported')
  .nullish();

/** A pair, or two tokens with a space between, as older files have it. */
const merge = z.union([
  z.string().transform((pair) => pair.split(' ')),
  z.array(z.string()),
]);

const fileSchema = z.looseObject({
  added_tokens: z.array(addedToken).nullish(),
  normalizer: step,
  pre_tokenizer: step,
  post_processor: step,
  decoder: step,
  model: z.looseObject({
    type: z.literal('BPE', 'only BPE is supported').default('BPE'),
    vocab: table,
    merges: z.array(merge),
    unk_token: z.string().nullish(),
    continuing_subword_prefix: unused,
    end_of_word_suffix: unused,
  }),
});

/** A `tokenizer.json` whose structure has been checked. */
export type TokenizerFile = z.infer<typeof fileSchema>;

/** One of the tokens that are found in the text before anything else. */
export type AddedToken = z.infer<typeof addedToken>;

const namedToken = z
  .union([z.string(), z.looseObject({ content: z.string() })])
  .nullish()
  .transform((token) => (typeof token === 'object' ? token?.content : token));

const configSchema = z.looseObject({
  bos_token: namedToken,
  eos_token: namedToken,
  unk_token: namedToken,
  chat_template: z
    .union([
      z.string(),
      z.array(z.looseObject({ name: z.string(), template: z.string() })),
    ])
    .nullish(),
});

/** A `tokenizer_config.json` whose structure has been checked. */
export type TokenizerConfigFile = z.infer<typeof configSchema>;

/**
 * Checks the structure of a parsed `tokenizer.json`.
 *
 * @throws ConfigError with the first field that is wrong.
 */
export function parseTokenizerFile(json: unknown, path: string): TokenizerFile {
  return parse(fileSchema, json, path);
}

/**
 * Checks the structure of a parsed `tokenizer_config.json`.
 *
 * @throws ConfigError with the first field that is wrong.
 */
export function parseTokenizerConfig(
  json: unknown,
  path: string,
): TokenizerConfigFile {
  return parse(configSchema, json, path);
}

function parse<T>(schema: z.ZodType<T>, json: unknown, path: string): T {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const field = issue?.path.join('.');
  throw new ConfigError(path, field || undefined, issue?.message ?? 'invalid');
}

/**
 * The tokens of a file in the order of their ids, added tokens included. The
 * ids run from 0 without a hole, each belongs to one token.
 *
 * @param modelVocabularySize rows of the model's embedding, if it is known.
 * @throws ConfigError if the ids break a rule or reach beyond the model's.
 */
export function tokensById(
  file: TokenizerFile,
  path: string,
  modelVocabularySize = Number.POSITIVE_INFINITY,
): string[] {
  const tokens = new Map<number, string>();
  const add = (field: string, token: string, id: unknown) => {
    const fail = (rule: string) =>
      new ConfigError(path, `${field}[${JSON.stringify(token)}]`, rule);
    if (typeof id !== 'number' || !Number.isSafeInteger(id) || id < 0) {
      throw fail(`an id must be an integer from 0 on, got ${show(id)}`);
    }
    if (id >= modelVocabularySize) {
      throw fail(
        `an id must be below the model's ${modelVocabularySize} tokens, got ${id}`,
      );
    }
    const other = tokens.get(id);
    if (other !== undefined && other !== token) {
      throw fail(`id ${id} is already that of ${JSON.stringify(other)}`);
    }
    tokens.set(id, token);
  };
  const vocabulary = new Map(Object.entries(file.model.vocab));
  for (const [token, id] of vocabulary) add('model.vocab', token, id);
  for (const { content, id } of file.added_tokens ?? []) {
    const known = vocabulary.get(content);
    if (known !== undefined && known !== id) {
      throw new ConfigError(
        path,
        'added_tokens',
        `${JSON.stringify(content)} must have its id of model.vocab, ${show(known)}, got ${id}`,
      );
    }
    vocabulary.set(content, id);
    add('added_tokens', content, id);
  }
  return withoutHoles(tokens, path);
}

function withoutHoles(
  tokens: ReadonlyMap<number, string>,
  path: string,
): string[] {
  return Array.from({ length: tokens.size }, (_, id) => {
    const token = tokens.get(id);
    if (token !== undefined) return token;
    throw new ConfigError(
      path,
      'model.vocab',
      `ids must have no holes, no token has id ${id} of ${tokens.size}`,
    );
  });
}

/**
 * Checks that each merge joins two tokens of the vocabulary into a third.
 *
 * @throws ConfigError naming the first merge that does not.
 */
export function checkMerges(file: TokenizerFile, path: string): void {
  const { vocab, merges } = file.model;
  for (const [i, merge] of merges.entries()) {
    const known =
      merge.length === 2 &&
      [...merge, merge.join('')].every((token) => Object.hasOwn(vocab, token));
    if (known) continue;
    throw new ConfigError(
      path,
      `model.merges[${i}]`,
      `must be two tokens whose union is a token, got ${JSON.stringify(merge.join(' '))}`,
    );
  }
}

function show(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 40) ?? String(value);
}
