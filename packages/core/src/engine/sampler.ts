import { ArgumentError } from '../errors';
import type { Random } from '../random';

/**
 * How a token is chosen. The steps run in this order, which is that of
 * Hugging Face transformers; each is off when it is left out.
 */
export interface SamplerOptions {
  /** Added to the logits, by token; -Infinity forbids a token. */
  readonly logitBias?: ReadonlyMap<number, number>;
  /**
   * Divides positive and multiplies negative logits of tokens that occurred,
   * in the prompt or since. Above 0. Source: CTRL, arXiv 1909.05858.
   */
  readonly repetitionPenalty?: number;
  /** Taken off a logit for each time its token was generated. */
  readonly frequencyPenalty?: number;
  /** Taken off a logit once its token was generated. */
  readonly presencePenalty?: number;
  /** Divides the logits; 0 takes the best token. 1 when left out. */
  readonly temperature?: number;
  /** Only the best k tokens, ties by lower id. */
  readonly topK?: number;
  /** Only the fewest best tokens that hold this share of the probability. */
  readonly topP?: number;
  /** Only tokens with at least this share of the best one's probability. */
  readonly minP?: number;
  /** How many of the likeliest tokens to report beside the chosen one. */
  readonly top?: number;
}

export interface TokenLogprob {
  readonly token: number;
  /** Natural logarithm of its probability before any of the steps. */
  readonly logprob: number;
}

export interface Sampled extends TokenLogprob {
  /** The likeliest tokens, best first, where `top` asks for them. */
  readonly top?: readonly TokenLogprob[];
}

/** Tokens so far, as the penalties count them. */
export class History {
  readonly seen: Set<number>;
  readonly generated = new Map<number, number>();

  constructor(prompt: Iterable<number> = []) {
    this.seen = new Set(prompt);
  }

  /** Takes a generated token in. */
  add(token: number): void {
    this.seen.add(token);
    this.generated.set(token, (this.generated.get(token) ?? 0) + 1);
  }
}

/**
 * Chooses a token. Draws one random number, none at temperature 0.
 * @param logits `[V]`; -Infinity is a token that cannot come.
 * @throws ArgumentError for logits that are NaN or +Infinity, or where no
 * token is left. Options are taken as `checkSamplerOptions` left them.
 */
export function sample(
  logits: Float32Array,
  history: History,
  options: SamplerOptions,
  random: Random,
): Sampled {
  const logSum = logSumExp(logits);
  const scores = adjusted(logits, history, options);
  const best = argmax(scores);
  const token =
    options.temperature === 0
      ? best
      : draw(scores, scores[best] ?? 0, options, random);
  const logprob = (id: number) => (logits[id] ?? 0) - logSum;
  return {
    token,
    logprob: logprob(token),
    ...(options.top !== undefined && {
      top: likeliest(logits, options.top).map((id) => ({
        token: id,
        logprob: logprob(id),
      })),
    }),
  };
}

/** Asks for what the operator `sample` does not know. */
export function needsHost(options: SamplerOptions): boolean {
  const { logitBias, repetitionPenalty = 1, top } = options;
  const { frequencyPenalty = 0, presencePenalty = 0 } = options;
  return (
    (logitBias?.size ?? 0) > 0 ||
    repetitionPenalty !== 1 ||
    frequencyPenalty !== 0 ||
    presencePenalty !== 0 ||
    top !== undefined
  );
}

/**
 * Refuses options that mean nothing.
 * @throws ArgumentError
 */
export function checkSamplerOptions(
  options: SamplerOptions,
  vocabularySize: number,
): void {
  const rule = (
    name: keyof SamplerOptions,
    holds: (value: number) => boolean,
    text: string,
  ) => {
    const value = options[name];
    if (value === undefined) return;
    if (typeof value !== 'number' || !holds(value)) {
      throw new ArgumentError(`sampler: ${name} must be ${text}, got ${value}`);
    }
  };
  rule('temperature', (x) => Number.isFinite(x) && x >= 0, 'at least 0');
  rule('topK', (x) => Number.isSafeInteger(x) && x >= 1, 'a positive integer');
  rule('topP', (x) => x > 0 && x <= 1, 'above 0 and at most 1');
  rule('minP', (x) => x >= 0 && x <= 1, 'from 0 to 1');
  rule('repetitionPenalty', (x) => Number.isFinite(x) && x > 0, 'above 0');
  rule('frequencyPenalty', Number.isFinite, 'finite');
  rule('presencePenalty', Number.isFinite, 'finite');
  rule(
    'top',
    (x) => Number.isSafeInteger(x) && x >= 0 && x <= vocabularySize,
    `an integer from 0 to ${vocabularySize}`,
  );
  for (const [token, bias] of options.logitBias ?? []) {
    if (
      !(Number.isSafeInteger(token) && token >= 0 && token < vocabularySize)
    ) {
      throw new ArgumentError(
        `sampler: a token of logitBias must be an integer from 0 to ${vocabularySize - 1}, got ${token}`,
      );
    }
    if (typeof bias !== 'number' || !(bias < Number.POSITIVE_INFINITY)) {
      throw new ArgumentError(
        `sampler: a logit bias must be finite or -Infinity, got ${bias} for token ${token}`,
      );
    }
  }
}

/** `log sum_i exp(x_i)` of logits that are fit for it. */
function logSumExp(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i] ?? Number.NaN;
    if (!(logit < Number.POSITIVE_INFINITY)) {
      throw new ArgumentError(
        `sampler: logits must not be NaN or +Infinity, got ${logit} for token ${i}`,
      );
    }
    if (logit > max) max = logit;
  }
  if (max === Number.NEGATIVE_INFINITY) {
    throw new ArgumentError('sampler: every logit is -Infinity');
  }
  let sum = 0;
  for (let i = 0; i < logits.length; i++)
    sum += Math.exp((logits[i] ?? 0) - max);
  return max + Math.log(sum);
}

/** The logits with bias and penalties. */
function adjusted(
  logits: Float32Array,
  history: History,
  options: SamplerOptions,
): Float64Array {
  const scores = Float64Array.from(logits);
  const change = (token: number, to: (score: number) => number) => {
    const score = scores[token];
    if (score !== undefined) scores[token] = to(score);
  };
  for (const [token, bias] of options.logitBias ?? []) {
    change(token, (score) => score + bias);
  }
  const { repetitionPenalty: penalty = 1 } = options;
  if (penalty !== 1) {
    for (const token of history.seen) {
      change(token, (score) => (score > 0 ? score / penalty : score * penalty));
    }
  }
  const { frequencyPenalty = 0, presencePenalty = 0 } = options;
  if (frequencyPenalty !== 0 || presencePenalty !== 0) {
    for (const [token, count] of history.generated) {
      change(token, (s) => s - count * frequencyPenalty - presencePenalty);
    }
  }
  return scores;
}

/** The first of the greatest scores. */
function argmax(scores: Float64Array): number {
  let best = 0;
  for (let i = 1; i < scores.length; i++) {
    if ((scores[i] ?? 0) > (scores[best] ?? 0)) best = i;
  }
  if (scores[best] === Number.NEGATIVE_INFINITY) {
    throw new ArgumentError('sampler: logitBias forbids every token');
  }
  return best;
}

/** A random token of those that temperature, top-k, top-p and min-p leave. */
function draw(
  scores: Float64Array,
  max: number,
  { temperature = 1, topK, topP, minP }: SamplerOptions,
  random: Random,
): number {
  const weights = scores;
  for (let i = 0; i < weights.length; i++) {
    weights[i] = Math.exp(((weights[i] ?? 0) - max) / temperature);
  }
  const kept =
    topK === undefined && topP === undefined && minP === undefined
      ? everything(weights)
      : cut(weights, topK ?? weights.length, topP ?? 1, minP ?? 0);
  let left = random.uniform() * kept.sum;
  let { ties } = kept;
  let last = 0;
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i] ?? 0;
    if (weight < kept.least || weight === 0) continue;
    if (weight === kept.least && ties-- <= 0) continue;
    last = i;
    left -= weight;
    if (left < 0) break;
  }
  return last;
}

/** The tokens above `least`, the first `ties` of those at it. */
interface Kept {
  readonly least: number;
  readonly ties: number;
  readonly sum: number;
}

function everything(weights: Float64Array): Kept {
  return { least: 0, ties: 0, sum: weights.reduce((sum, w) => sum + w, 0) };
}

/** Sorts values, not tokens: that is fast, and all that a threshold needs. */
function cut(
  weights: Float64Array,
  topK: number,
  topP: number,
  minP: number,
): Kept {
  const sorted = weights.toSorted().reverse().subarray(0, topK);
  const share = topP * sorted.reduce((sum, weight) => sum + weight, 0);
  let count = 0;
  let sum = 0;
  // The greatest weight is 1, so min-p is a bound on the weights themselves.
  while (count < sorted.length && (sorted[count] ?? 0) >= minP) {
    sum += sorted[count] ?? 0;
    count += 1;
    if (topP < 1 && sum >= share) break;
  }
  const least = sorted[count - 1] ?? 0;
  const above = sorted.indexOf(least);
  return { least, ties: count - above, sum };
}

/** The `count` tokens of the greatest logits, ties by lower id. */
function likeliest(logits: Float32Array, count: number): number[] {
  const least = logits.toSorted().at(-count) ?? Number.POSITIVE_INFINITY;
  const ids: number[] = [];
  for (let i = 0; count > 0 && i < logits.length; i++) {
    if ((logits[i] ?? 0) >= least) ids.push(i);
  }
  const value = (id: number) => logits[id] ?? 0;
  return ids.sort((a, b) => value(b) - value(a) || a - b).slice(0, count);
}
