import type { Engine } from '../engine/engine';
import type { Session } from '../engine/session';
import { ArgumentError } from '../errors';
import { Random } from '../random';
import type { Tokenizer } from '../text/tokenizer';
import type { Needle } from './needle-forms';
import {
  type Haystack,
  NeedlePrompts,
  noiseHaystack,
  textHaystack,
} from './needle-prompt';
import { type KeyWords, keyWords } from './needle-words';
import { type Proportion, proportion } from './proportion';

/**
 * S-NIAH of RULER (arXiv 2404.06654): 1 hides a number in noise, 2 a number in
 * a text, 3 a UUID in a text.
 */
export type NeedleTask = 1 | 2 | 3;

export interface NeedleOptions {
  /** All three when left out. */
  readonly tasks?: readonly NeedleTask[];
  /** Tokens of prompt and answer together. */
  readonly lengths: readonly number[];
  /** Where the needle lies, from 0, before all of the haystack, to 1. */
  readonly depths: readonly number[];
  /** Haystacks for each task and length, each with a needle of its own. */
  readonly samples?: number;
  readonly seed?: number;
  /** What the haystacks of tasks 2 and 3 are cut from. */
  readonly text?: string;
  readonly words?: KeyWords;
  /** Room for the answer, in tokens; RULER's 128 when left out. */
  readonly answerTokens?: number;
  /** Prompts that run at a time; 8 when left out. */
  readonly batch?: number;
  /** Ends between two batches, and the batch that runs. */
  readonly signal?: AbortSignal;
}

/** One prompt and what the model made of it. Plain data. */
export interface NeedleTrial {
  readonly task: NeedleTask;
  readonly length: number;
  readonly depth: number;
  readonly sample: number;
  readonly promptTokens: number;
  readonly key: string;
  readonly value: string;
  /** Up to where the value stood in it, if it did. */
  readonly answer: string;
  readonly isCorrect: boolean;
}

/** Trials of one task and length, at one depth or at all. */
export interface NeedleCell extends Proportion {
  readonly task: NeedleTask;
  readonly length: number;
  /** Undefined where all depths are counted together. */
  readonly depth?: number;
}

/** Tokens of a prompt that run at a time. */
const chunk = 2048;

/**
 * Hides needles and asks for them, greedily. The prompts of one haystack differ
 * only from the needle on, so what stands before is run once for all of them.
 * @throws ArgumentError for options that mean nothing, or a model without a
 *   tokenizer.
 */
export async function* evaluateNeedle(
  engine: Engine,
  options: NeedleOptions,
): AsyncGenerator<NeedleTrial, void, undefined> {
  const { tasks = [1, 2, 3], lengths, samples = 1, seed = 0 } = options;
  const { answerTokens = 128, batch = 8, words = keyWords } = options;
  const depths = [...options.depths].sort((a, b) => a - b);
  const tokenizer = check(engine, options);
  const prompts = new NeedlePrompts(tokenizer);
  for (const length of lengths) {
    for (const task of tasks) {
      for (let sample = 0; sample < samples; sample++) {
        const random = Random.fromSeed(hash(seed, task, length, sample));
        const needle = randomNeedle(task, words, random);
        const haystack = haystackOf(task, options.text, random);
        const count = prompts.fit(haystack, needle, length - answerTokens);
        for (let i = 0; i < depths.length; i += batch) {
          options.signal?.throwIfAborted();
          const some = depths.slice(i, i + batch);
          const ids = some.map((depth) =>
            prompts.encode(haystack, needle, { count, depth }),
          );
          const answers = await ask(engine, ids, needle.value, options);
          yield* some.map((depth, k): NeedleTrial => {
            const answer = answers[k] ?? '';
            const { key, value } = needle;
            const promptTokens = ids[k]?.length ?? 0;
            const isCorrect = answer.includes(value);
            const at = { task, length, depth, sample, promptTokens };
            return { ...at, key, value, answer, isCorrect };
          });
        }
      }
    }
  }
}

/**
 * Counts by task, length and, where asked for, depth, in this order.
 */
export function needleCells(
  trials: Iterable<NeedleTrial>,
  by: 'depth' | 'length',
): NeedleCell[] {
  const groups = new Map<string, NeedleTrial[]>();
  for (const trial of trials) {
    const { task, length, depth } = trial;
    const name = `${task} ${length} ${by === 'depth' ? depth : ''}`;
    groups.set(name, [...(groups.get(name) ?? []), trial]);
  }
  return [...groups.values()]
    .flatMap((group) => {
      const [first] = group;
      if (!first) return [];
      const { task, length, depth } = first;
      const correct = group.filter(({ isCorrect }) => isCorrect).length;
      const at = by === 'depth' ? { task, length, depth } : { task, length };
      return [{ ...at, ...proportion(correct, group.length) }];
    })
    .sort(
      (a: NeedleCell, b: NeedleCell) =>
        a.task - b.task ||
        a.length - b.length ||
        (a.depth ?? 0) - (b.depth ?? 0),
    );
}

/** The answers to prompts that begin alike, those with a longer start behind. */
async function ask(
  engine: Engine,
  prompts: readonly Int32Array[],
  value: string,
  { answerTokens = 128, signal }: NeedleOptions,
): Promise<string[]> {
  const capacity =
    Math.max(...prompts.map(({ length }) => length)) + answerTokens;
  const sessions = engine.sessions(prompts.length + 1, { capacity });
  const [trunk, ...vacant] = sessions;
  if (!trunk) return [];
  // Forks take the slots beside the trunk.
  for (const session of vacant) session.free();
  const forks: Session[] = [];
  try {
    for (const [i, prompt] of prompts.entries()) {
      const shared = commonStart(prompt, prompts[i + 1] ?? prompt);
      const known = trunk.length;
      // The last token stays, for its logits begin the answer.
      const to = Math.max(known, Math.min(shared, prompt.length - 1));
      if (to > known) {
        await trunk.extend(prompt.subarray(known, to), abortable(signal));
      }
      forks.push(trunk.fork());
    }
    return await answersOf(engine, forks, prompts, value, {
      answerTokens,
      signal,
    });
  } finally {
    for (const fork of forks) fork.free();
    trunk.free();
  }
}

async function answersOf(
  engine: Engine,
  sessions: readonly Session[],
  prompts: readonly Int32Array[],
  value: string,
  how: { answerTokens: number; signal: AbortSignal | undefined },
): Promise<string[]> {
  const answers = sessions.map(() => '');
  const found = sessions.map(() => new AbortController());
  const events = engine.generateBatch(
    sessions,
    sessions.map((session, i) => ({
      prompt: prompts[i]?.subarray(session.length) ?? [],
      maxTokens: how.answerTokens,
      temperature: 0,
      chunk,
      signal: AbortSignal.any(
        [found[i]?.signal, how.signal].flatMap((signal) => signal ?? []),
      ),
    })),
  );
  for await (const { index, event } of events) {
    answers[index] += event.text;
    if (answers[index]?.includes(value)) found[index]?.abort();
  }
  how.signal?.throwIfAborted();
  return answers;
}

const abortable = (signal: AbortSignal | undefined) =>
  signal ? { chunk, signal } : { chunk };

function commonStart(a: Int32Array, b: Int32Array): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}

function haystackOf(
  task: NeedleTask,
  text: string | undefined,
  random: Random,
): Haystack {
  if (task === 1 || text === undefined) return noiseHaystack(1);
  return textHaystack(text, random);
}

function randomNeedle(
  task: NeedleTask,
  { adjectives, nouns }: KeyWords,
  random: Random,
): Needle {
  const pick = (words: readonly string[]) => words[random.below(words.length)];
  const key = `${pick(adjectives)}-${pick(nouns)}`;
  return task === 3
    ? { kind: 'uuid', key, value: randomUuid(random) }
    : { kind: 'number', key, value: randomDigits(random) };
}

const randomDigits = (random: Random): string =>
  String(1_000_000 + random.below(9_000_000));

/** Version 4: 122 random bits. */
function randomUuid(random: Random): string {
  return 'xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx'.replace(/[xy]/g, (place) =>
    (place === 'x' ? random.below(16) : 8 + random.below(4)).toString(16),
  );
}

/** A seed for each place of the table, whatever else is asked for. */
function hash(...values: readonly number[]): number {
  return values.reduce(
    (sum, value) => Math.imul(sum ^ value, 0x01000193) >>> 0,
    0x811c9dc5,
  );
}

function check(engine: Engine, options: NeedleOptions): Tokenizer {
  const { lengths, depths, samples = 1, tasks = [1, 2, 3], text } = options;
  const { answerTokens = 128, batch = 8, words = keyWords } = options;
  const whole = (name: string, value: number, most: number) => {
    if (Number.isSafeInteger(value) && value >= 1 && value <= most) return;
    throw new ArgumentError(
      `needle: ${name} must be an integer from 1 to ${most}, got ${value}`,
    );
  };
  for (const length of lengths)
    whole('a length', length, engine.config.context);
  for (const task of tasks) whole('a task', task, 3);
  whole('samples', samples, Number.MAX_SAFE_INTEGER);
  whole('batch', batch, Number.MAX_SAFE_INTEGER);
  whole('answerTokens', answerTokens, engine.config.context);
  for (const depth of depths) {
    if (depth >= 0 && depth <= 1) continue;
    throw new ArgumentError(
      `needle: a depth must be a number from 0 to 1, got ${depth}`,
    );
  }
  if (words.adjectives.length === 0 || words.nouns.length === 0) {
    throw new ArgumentError('needle: words must have adjectives and nouns');
  }
  if (tasks.some((task) => task !== 1) && !text?.trim()) {
    throw new ArgumentError(
      'needle: tasks 2 and 3 need a text to hide the needle in, got none',
    );
  }
  if (engine.tokenizer) return engine.tokenizer;
  throw new ArgumentError('needle: the model must have a tokenizer, got none');
}
