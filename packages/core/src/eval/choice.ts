import type { Engine } from '../engine/engine';
import type { LogitsPiece } from '../engine/extend';
import type { Session } from '../engine/session';
import { ArgumentError } from '../errors';
import type { Tokenizer } from '../text/tokenizer';
import type { ChoiceItem, ChoiceOption } from './choice-file';
import { type Proportion, proportion } from './proportion';

export interface ChoiceOptions {
  /** Options that run at a time; 32 when left out. */
  readonly batch?: number;
  /** Stops between batches. */
  readonly signal?: AbortSignal;
}

/** How likely a model finds an option. Plain data. */
export interface ChoiceScore {
  /** Natural logarithm of the continuation's probability given the context. */
  readonly logprob: number;
  /** UTF-8 bytes of the continuation without the space before it. */
  readonly bytes: number;
  readonly tokens: number;
  /** Whether each of its tokens is the likeliest one. */
  readonly isGreedy: boolean;
}

export interface ChoiceResult {
  readonly scores: readonly ChoiceScore[];
  readonly gold: number;
}

/** What the results of a task come to. */
export interface ChoiceSummary {
  /** Items whose right option is the likeliest; a lone one: greedily so. */
  readonly acc: Proportion;
  /** The same by likelihood a byte; undefined where options are single. */
  readonly accNorm?: Proportion;
  /** What guessing would get. */
  readonly chance?: number;
  /** Of single options: `exp(-mean logprob)` a continuation, as LAMBADA's. */
  readonly perplexity?: number;
}

/**
 * Scores the options of each item. A context that options share is run once;
 * each option goes on from a fork of it.
 * @throws ArgumentError for an option that is longer than the model's context,
 *   or a model without a tokenizer.
 */
export async function* evaluateChoices(
  engine: Engine,
  items: Iterable<ChoiceItem>,
  { batch = 32, signal }: ChoiceOptions = {},
): AsyncGenerator<ChoiceResult, void, undefined> {
  const { tokenizer } = engine;
  if (!tokenizer) {
    throw new ArgumentError(
      'choice: the model must have a tokenizer, got none',
    );
  }
  if (!Number.isSafeInteger(batch) || batch < 1) {
    throw new ArgumentError(
      `choice: batch must be a positive integer, got ${batch}`,
    );
  }
  for (const some of batches(items, batch)) {
    signal?.throwIfAborted();
    const contexts = some.flatMap(({ options }) => stems(tokenizer, options));
    const scores = await score(engine, contexts, signal);
    let from = 0;
    for (const { options, gold } of some) {
      const to = from + options.length;
      yield { scores: scores.slice(from, to), gold };
      from = to;
    }
  }
}

export function summarizeChoices(
  results: readonly ChoiceResult[],
): ChoiceSummary {
  const count = results.length;
  const right = (by: (score: ChoiceScore) => number) =>
    results.filter(({ scores, gold }) => best(scores, by) === gold).length;
  if (results.every(({ scores }) => scores.length === 1)) {
    const scores = results.flatMap(({ scores }) => scores);
    const total = scores.reduce((sum, { logprob }) => sum + logprob, 0);
    const greedy = scores.filter(({ isGreedy }) => isGreedy).length;
    return {
      acc: proportion(greedy, count),
      perplexity: Math.exp(-total / count),
    };
  }
  const odds = results.map(({ scores }) => 1 / scores.length);
  return {
    acc: proportion(
      right(({ logprob }) => logprob),
      count,
    ),
    accNorm: proportion(
      right(({ logprob, bytes }) => logprob / bytes),
      count,
    ),
    chance: odds.reduce((sum, share) => sum + share, 0) / count,
  };
}

/** The first of the best. */
function best(
  scores: readonly ChoiceScore[],
  by: (score: ChoiceScore) => number,
): number {
  const values = scores.map(by);
  return values.indexOf(Math.max(...values));
}

/** A context and the continuations behind it, as ids. */
interface Stem {
  readonly context: Int32Array;
  readonly continuations: readonly Continuation[];
}

interface Continuation {
  readonly ids: Int32Array;
  readonly bytes: number;
}

/** Neighbours that share their context share a stem; the order stays. */
function stems(tokenizer: Tokenizer, options: readonly ChoiceOption[]): Stem[] {
  const found: { text: string; continuations: Continuation[] }[] = [];
  for (const { context, continuation } of options) {
    const ids = tokenizer.encode(continuation, { addSpecialTokens: false });
    const bytes = new TextEncoder().encode(continuation.trim()).length;
    const last = found.at(-1);
    if (last?.text === context) last.continuations.push({ ids, bytes });
    else found.push({ text: context, continuations: [{ ids, bytes }] });
  }
  const { bosId } = tokenizer;
  const start = bosId === undefined ? [] : [bosId];
  return found.map(({ text, continuations }) => ({
    context: Int32Array.of(
      ...start,
      ...tokenizer.encode(text, { addSpecialTokens: false }),
    ),
    continuations,
  }));
}

async function score(
  engine: Engine,
  stems: readonly Stem[],
  signal: AbortSignal | undefined,
): Promise<ChoiceScore[]> {
  const options = stems.flatMap(({ continuations }) => continuations);
  const capacity = Math.max(
    ...stems.map(
      ({ context, continuations }) =>
        context.length +
        Math.max(...continuations.map(({ ids }) => ids.length)),
    ),
  );
  if (capacity > engine.config.context) {
    throw new ArgumentError(
      `choice: an option with its context must have at most the model's ${engine.config.context} tokens, got ${capacity}`,
    );
  }
  const sessions = engine.sessions(stems.length + options.length, { capacity });
  const trunks = sessions.slice(0, stems.length);
  // Forks take their slots.
  for (const session of sessions.slice(stems.length)) session.free();
  const forks: Session[] = [];
  const how = { chunk: 1024, ...(signal && { signal }) };
  try {
    const contexts = stems.map(({ context }) => context);
    const behind = await engine.extend(trunks, contexts, how);
    const scorers = stems.flatMap(({ continuations }, i) =>
      continuations.map(({ ids, bytes }) => {
        const trunk = trunks[i];
        if (trunk) forks.push(trunk.fork());
        return new Scorer(ids, bytes, behind[i] ?? new Float32Array());
      }),
    );
    await engine.extend(
      forks,
      options.map(({ ids }) => ids),
      { ...how, onLogits: (piece) => scorers[piece.session]?.take(piece) },
    );
    return scorers.map((scorer) => scorer.score);
  } finally {
    for (const session of [...forks, ...trunks]) session.free();
  }
}

/** Adds up one continuation as its logits come. */
class Scorer {
  private logprob = 0;
  private isGreedy = true;
  private scored = 0;

  constructor(
    private readonly ids: Int32Array,
    private readonly bytes: number,
    /** `[V]` behind the context. */
    first: Float32Array,
  ) {
    this.add(first);
  }

  get score(): ChoiceScore {
    const { logprob, bytes, isGreedy, ids } = this;
    return { logprob, bytes, tokens: ids.length, isGreedy };
  }

  take({ logits, rows }: LogitsPiece): void {
    const width = logits.length / rows;
    for (let row = 0; row < rows; row++) {
      this.add(logits.subarray(row * width, (row + 1) * width));
    }
  }

  /** Logits that predict the next token; behind the last they predict none. */
  private add(logits: Float32Array): void {
    const id = this.ids[this.scored];
    if (id === undefined) return;
    this.scored += 1;
    const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (const logit of logits) sum += Math.exp(logit - largest);
    const own = logits[id] ?? -Infinity;
    this.logprob += own - largest - Math.log(sum);
    this.isGreedy &&= own === largest;
  }
}

/** Groups of items with about as many options, one item at least. */
function* batches(
  items: Iterable<ChoiceItem>,
  size: number,
): Generator<ChoiceItem[]> {
  let group: ChoiceItem[] = [];
  let options = 0;
  for (const item of items) {
    if (group.length > 0 && options + item.options.length > size) {
      yield group;
      group = [];
      options = 0;
    }
    group.push(item);
    options += item.options.length;
  }
  if (group.length > 0) yield group;
}
