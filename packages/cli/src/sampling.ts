import type { GenerateOptions } from '@asa/core';
import {
  type Command,
  InvalidArgumentError,
} from '@commander-js/extra-typings';
import { UsageError } from './exit';
import { collect, integer, real } from './values';

/** Adds the options that say how tokens are chosen. */
export function withSampling<
  Args extends unknown[],
  Opts extends Record<string, unknown>,
>(command: Command<Args, Opts>) {
  return command
    .option('--max-tokens <n>', 'most tokens of an answer', integer({ min: 0 }))
    .option('--greedy', 'always the best token; the same as --temperature 0')
    .option('--temperature <x>', '0 takes the best token', real({ min: 0 }))
    .option('--top-k <n>', 'only the n best tokens', integer({ min: 1 }))
    .option(
      '--top-p <x>',
      'only the best tokens that together have this probability',
      real({ above: 0, max: 1 }),
    )
    .option(
      '--min-p <x>',
      'only tokens with this share of the best probability',
      real({ min: 0, max: 1 }),
    )
    .option(
      '--repetition-penalty <x>',
      'above 1: what occurred comes less often',
      real({ above: 0 }),
    )
    .option(
      '--frequency-penalty <x>',
      'off a logit for each time its token came',
      real(),
    )
    .option('--presence-penalty <x>', 'off a logit once its token came', real())
    .option(
      '--logit-bias <id=value>',
      "added to a token's logit; may be repeated",
      logitBias,
    )
    .option(
      '--seed <n>',
      'the same seed gives the same text',
      integer({ min: 0, max: 2 ** 32 - 1 }),
    )
    .option('--stop <text>', 'ends the answer; may be repeated', collect);
}

export interface SamplingOptions {
  readonly maxTokens?: number;
  readonly greedy?: true;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly frequencyPenalty?: number;
  readonly presencePenalty?: number;
  readonly logitBias?: ReadonlyMap<number, number>;
  readonly seed?: number;
  readonly stop?: readonly string[];
}

/** The library's options out of the command line's. */
export function samplingOf(options: SamplingOptions): GenerateOptions {
  const { maxTokens, seed, stop, topK, topP, minP, logitBias } = options;
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = options;
  return {
    maxTokens,
    seed,
    stop,
    temperature: options.greedy ? 0 : (options.temperature ?? 0.8),
    topK,
    topP,
    minP,
    repetitionPenalty,
    frequencyPenalty,
    presencePenalty,
    logitBias,
  };
}

/** @throws UsageError for a token that the model has not got. */
export function checkLogitBias(
  { logitBias = new Map() }: SamplingOptions,
  vocabularySize: number,
): void {
  for (const id of logitBias.keys()) {
    if (id < vocabularySize) continue;
    throw new UsageError(
      `--logit-bias: a token must be from 0 to ${vocabularySize - 1}, got ${id}`,
    );
  }
}

function logitBias(
  text: string,
  before: ReadonlyMap<number, number> = new Map(),
): Map<number, number> {
  const [, id, value] = /^(\d+)=(-?[0-9.e+-]+|-inf)$/i.exec(text) ?? [];
  const bias = value?.toLowerCase() === '-inf' ? -Infinity : Number(value);
  if (id === undefined || Number.isNaN(bias)) {
    throw new InvalidArgumentError('It must be ID=VALUE, such as 42=-1.5.');
  }
  return new Map(before).set(Number(id), bias);
}
