import { nextTurn } from '../engine/event-loop';
import { ArgumentError } from '../errors';
import type { Model } from '../model/model';
import type { Tokenizer } from '../text/tokenizer';
import { Documents } from '../train/documents';
import { type Example, losses } from '../train/loss';

export interface PerplexityOptions {
  /** Most tokens that a prediction sees; the model's context when left out. */
  readonly context?: number;
  /**
   * Tokens from one window to the next, at most `context`. Smaller: every
   * prediction sees at least `context - stride` tokens, at more cost.
   * `context` when left out: windows side by side.
   */
  readonly stride?: number;
  /** Windows of one forward pass; 8 when left out. */
  readonly rows?: number;
  /** Bytes of text that a token stands for; without it there are no bytes. */
  readonly bytesOf?: (token: number) => number;
  readonly signal?: AbortSignal;
}

/** How well a model predicts text. */
export interface Perplexity {
  /** Mean cross entropy, nats a token. */
  readonly loss: number;
  /** `exp(loss)` */
  readonly perplexity: number;
  /** Tokens that were predicted: all but each document's first. */
  readonly tokens: number;
  /**
   * Standard error of `loss`: that of a ratio of sums over `units`,
   * `sqrt(n / (n - 1) sum (nats_i - loss tokens_i)^2) / tokens`.
   * Source: Cochran, Sampling Techniques, 6.4.
   */
  readonly standardError: number;
  /**
   * What the error was taken over: documents, or windows where there is one
   * document. Windows of one document are alike: the error is then too small.
   */
  readonly units: 'documents' | 'windows';
  /** Bytes of the predicted tokens, where `bytesOf` was given. */
  readonly bytes?: number;
  /** Bits a byte of text: comparable between tokenizers. */
  readonly bitsPerByte?: number;
  readonly bitsPerByteError?: number;
  /** By how much of its window a prediction saw: whether more helps. */
  readonly positions: readonly PositionLoss[];
}

/** Predictions that saw from `from` to `to` tokens, both included. */
export interface PositionLoss {
  readonly from: number;
  readonly to: number;
  readonly tokens: number;
  /** Mean cross entropy, nats a token. */
  readonly loss: number;
  /** Over windows, as if they were independent; none for a single one. */
  readonly standardError?: number;
}

/**
 * Predicts every token of the documents but the first of each, once.
 * @throws ArgumentError when there is nothing to predict or an option is out
 *   of its range.
 */
export async function evaluateDocuments(
  model: Model,
  documents: Documents,
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  const { context = model.config.context, rows = 8 } = options;
  const { stride = context } = options;
  checkRange('context', context, model.config.context);
  checkRange('stride', stride, context);
  checkRange('rows', rows, Number.MAX_SAFE_INTEGER);
  const all = [...windows(documents, context, stride)];
  const units: Unit[] = [];
  const octaves: Octaves[] = [];
  for (let i = 0; i < all.length; i += rows) {
    options.signal?.throwIfAborted();
    const some = all.slice(i, i + rows);
    const nats = await losses(model, some);
    units.push(...sums(some, nats, options.bytesOf));
    octaves.push(...byOctave(some, nats));
    await nextTurn();
  }
  return {
    ...summary(units, options.bytesOf !== undefined),
    positions: positionLosses(octaves),
  };
}

/**
 * The same for texts. Each is encoded without special tokens, behind the start
 * token where the tokenizer has one: then its first token is predicted too.
 */
export async function evaluateTexts(
  model: Model,
  tokenizer: Tokenizer,
  texts: readonly string[],
  options: Omit<PerplexityOptions, 'bytesOf'> = {},
): Promise<Perplexity> {
  const { bosId } = tokenizer;
  const start = bosId === undefined ? [] : [bosId];
  const encoded = texts.map((text) => [
    ...start,
    ...tokenizer.encode(text, { addSpecialTokens: false }),
  ]);
  return evaluateDocuments(model, Documents.of(encoded), {
    ...options,
    bytesOf: (id) =>
      tokenizer.isSpecial(id) ? 0 : tokenizer.tokenBytes(id).length,
  });
}

interface Window extends Example {
  readonly document: number;
}

function* windows(
  documents: Documents,
  context: number,
  stride: number,
): Generator<Window> {
  for (let document = 0; document < documents.count; document++) {
    const ids = documents.at(document);
    let scored = 0;
    for (let start = 0; scored < ids.length - 1; start += stride) {
      const end = Math.min(start + context, ids.length - 1);
      const targets = Int32Array.from(ids.subarray(start + 1, end + 1));
      // What an earlier window has predicted is context here.
      targets.fill(-1, 0, scored - start);
      yield { document, tokens: ids.subarray(start, end), targets };
      scored = end;
    }
  }
}

/** Sums over a document or a window. */
interface Unit {
  readonly document: number;
  readonly nats: number;
  readonly tokens: number;
  readonly bytes: number;
}

/** Of a window, by the power of two of the tokens that a prediction saw. */
type Octaves = Map<number, Unit>;

function sums(
  some: readonly Window[],
  losses: Float64Array,
  bytesOf: (token: number) => number = () => 0,
): Unit[] {
  let row = 0;
  return some.map(({ document, targets }) => {
    let [nats, tokens, bytes] = [0, 0, 0];
    for (let i = 0; i < targets.length; i++, row++) {
      const target = targets[i] ?? -1;
      if (target === -1) continue;
      nats += losses[row] ?? 0;
      tokens += 1;
      bytes += bytesOf(target);
    }
    return { document, nats, tokens, bytes };
  });
}

function byOctave(some: readonly Window[], losses: Float64Array): Octaves[] {
  let row = 0;
  return some.map(({ document, targets }) => {
    const octaves: Octaves = new Map();
    for (let i = 0; i < targets.length; i++, row++) {
      if (targets[i] === -1) continue;
      const octave = Math.floor(Math.log2(i + 1));
      const before = octaves.get(octave) ?? nothing(document);
      const nats = before.nats + (losses[row] ?? 0);
      octaves.set(octave, { ...before, nats, tokens: before.tokens + 1 });
    }
    return octaves;
  });
}

function positionLosses(windows: readonly Octaves[]): PositionLoss[] {
  const octaves = new Set(windows.flatMap((window) => [...window.keys()]));
  return [...octaves]
    .sort((a, b) => a - b)
    .map((octave) => {
      const units = windows.flatMap((window) => window.get(octave) ?? []);
      const { nats, tokens } = units.reduce(plus, nothing(0));
      const loss = nats / tokens;
      const error = ratioError(units, loss, 'tokens');
      return {
        from: 2 ** octave,
        to: 2 ** (octave + 1) - 1,
        tokens,
        loss,
        ...(units.length > 1 && { standardError: error }),
      };
    });
}

const nothing = (document: number): Unit => ({
  document,
  nats: 0,
  tokens: 0,
  bytes: 0,
});

function summary(
  windows: readonly Unit[],
  hasBytes: boolean,
): Omit<Perplexity, 'positions'> {
  const documents = new Map<number, Unit>();
  for (const unit of windows) {
    const before = documents.get(unit.document);
    documents.set(unit.document, before ? plus(before, unit) : unit);
  }
  const units = documents.size > 1 ? [...documents.values()] : windows;
  const all = units.reduce(plus, nothing(0));
  if (all.tokens === 0) {
    throw new ArgumentError(
      'perplexity: a document must have at least 2 tokens to predict one, got none',
    );
  }
  const loss = all.nats / all.tokens;
  return {
    loss,
    perplexity: Math.exp(loss),
    tokens: all.tokens,
    standardError: ratioError(units, loss, 'tokens'),
    units: documents.size > 1 ? 'documents' : 'windows',
    ...(hasBytes && {
      bytes: all.bytes,
      bitsPerByte: all.nats / all.bytes / Math.LN2,
      bitsPerByteError:
        ratioError(units, all.nats / all.bytes, 'bytes') / Math.LN2,
    }),
  };
}

function plus(a: Unit, b: Unit): Unit {
  return {
    document: a.document,
    nats: a.nats + b.nats,
    tokens: a.tokens + b.tokens,
    bytes: a.bytes + b.bytes,
  };
}

/** Standard error of `sum nats / sum size`; NaN for a single unit. */
function ratioError(
  units: readonly Unit[],
  ratio: number,
  size: 'tokens' | 'bytes',
): number {
  const n = units.length;
  let squares = 0;
  let total = 0;
  for (const unit of units) {
    squares += (unit.nats - ratio * unit[size]) ** 2;
    total += unit[size];
  }
  return n > 1 ? Math.sqrt((n / (n - 1)) * squares) / total : Number.NaN;
}

function checkRange(name: string, value: number, most: number): void {
  if (Number.isSafeInteger(value) && value >= 1 && value <= most) return;
  throw new ArgumentError(
    `perplexity: ${name} must be an integer from 1 to ${most}, got ${value}`,
  );
}
