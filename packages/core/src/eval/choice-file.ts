import { z } from 'zod';
import { EvaluationFileError } from './file-error';

/** One way to go on: what is given, and the text whose likelihood counts. */
export interface ChoiceOption {
  readonly context: string;
  /** Begins with the white space that parts it from the context. */
  readonly continuation: string;
}

/** A question with one right option; a single option is a text to complete. */
export interface ChoiceItem {
  readonly options: readonly ChoiceOption[];
  /** Index of the right option. */
  readonly gold: number;
}

const text = z.string().min(1);
const gold = z.int().nonnegative();

const line = z.union(
  [
    /** ARC, BoolQ, COPA, CommonsenseQA, OpenBookQA, PIQA, SIQA. */
    z.object({ query: text, choices: z.array(text).min(2), gold }),
    /** WinoGrande, WSC: the beginnings differ, the end is the same. */
    z.object({
      context_options: z.array(text).min(2),
      continuation: text,
      gold,
    }),
    /** LAMBADA: the last word. */
    z.object({ context: text, continuation: text }),
  ],
  'must have query, choices, gold; or context_options, continuation, gold; or context, continuation',
);

/**
 * Reads the items of a task.
 * @param path named in errors. A file that ends in `.txt` holds six lines an
 *   item, as HellaSwag is given: context, index of the right one, four ends;
 *   any other holds JSON lines.
 * @throws EvaluationFileError with file and line.
 */
export function parseChoices(content: string, path: string): ChoiceItem[] {
  const lines = content.replace(/\r\n/g, '\n').split('\n');
  while (lines.at(-1)?.trim() === '') lines.pop();
  const items = path.endsWith('.txt')
    ? sixLines(lines, path)
    : lines.flatMap((line, i) =>
        line.trim() === '' ? [] : [jsonLine(line, path, i + 1)],
      );
  if (items.length > 0) return items;
  throw new EvaluationFileError(path, 1, 'must hold an item, got none');
}

function jsonLine(source: string, path: string, number: number): ChoiceItem {
  let value: unknown;
  try {
    value = JSON.parse(source);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new EvaluationFileError(path, number, `not JSON, ${reason}`);
  }
  const parsed = line.safeParse(value);
  if (!parsed.success) {
    const rule = parsed.error.issues[0]?.message ?? 'invalid';
    throw new EvaluationFileError(path, number, rule);
  }
  return checked(itemOf(parsed.data), path, number);
}

function itemOf(data: z.infer<typeof line>): ChoiceItem {
  if ('choices' in data) {
    const { context, separator } = given(data.query);
    const options = data.choices.map((choice) => ({
      context,
      continuation: separator + choice.trim(),
    }));
    return { options, gold: data.gold };
  }
  const continuation = ` ${data.continuation.trim()}`;
  if ('context_options' in data) {
    const options = data.context_options.map((context) => ({
      context: context.trimEnd(),
      continuation,
    }));
    return { options, gold: data.gold };
  }
  const context = data.context.trimEnd();
  return { options: [{ context, continuation }], gold: 0 };
}

/** A question gets `Answer:` behind it, where it does not end in it. */
function given(query: string): { context: string; separator: string } {
  const context = query.trimEnd();
  const isQuestion = /^(Question|Passage):/.test(context);
  return isQuestion && !context.endsWith('Answer:')
    ? { context: `${context}\nAnswer:`, separator: ' ' }
    : { context, separator: ' ' };
}

const linesOfItem = 6;

function sixLines(lines: readonly string[], path: string): ChoiceItem[] {
  const items: ChoiceItem[] = [];
  for (let i = 0; i < lines.length; i += linesOfItem) {
    const [context = '', index = '', ...endings] = lines.slice(
      i,
      i + linesOfItem,
    );
    if (endings.length < linesOfItem - 2) {
      throw new EvaluationFileError(
        path,
        lines.length,
        `an item must have ${linesOfItem} lines, got ${endings.length + 2}`,
      );
    }
    if (!/^\d+$/.test(index.trim())) {
      const got = JSON.stringify(index.slice(0, 40));
      throw new EvaluationFileError(
        path,
        i + 2,
        `must be the index of the right end, got ${got}`,
      );
    }
    const options = endings.map((ending) => ({
      context: context.trimEnd(),
      continuation: ` ${ending.trim()}`,
    }));
    items.push(checked({ options, gold: Number(index) }, path, i + 2));
  }
  return items;
}

function checked(item: ChoiceItem, path: string, line: number): ChoiceItem {
  const { options, gold } = item;
  if (gold >= options.length) {
    throw new EvaluationFileError(
      path,
      line,
      `gold must be an index of the ${options.length} choices, got ${gold}`,
    );
  }
  const empty = options.find(
    ({ context, continuation }) =>
      context.trim() === '' || continuation.trim() === '',
  );
  if (!empty) return item;
  throw new EvaluationFileError(path, line, 'no text may be empty');
}
