import type { HostArray } from '../dtype';
import { ArgumentError } from '../errors';
import { bf16ToF32, f16ToF32 } from '../half';
import type { Batch } from '../model/batch';
import type { Cache } from '../model/cache';
import type { Model } from '../model/model';
import { gatherRows } from '../ops/gather-rows';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { nextTurn } from './event-loop';
import type { Steps } from './steps';
import type { Timeline } from './timeline';

/** Logits of consecutive new tokens of one session. */
export interface LogitsPiece {
  /** Which of the sessions; 0 where there is one. */
  readonly session: number;
  /** Position of the first of the tokens. */
  readonly position: number;
  /** `[rows, V]`: row i predicts the token at `position + i + 1`. */
  readonly logits: Float32Array;
  readonly rows: number;
}

export interface ExtendOptions {
  /** Tokens of a session that run at a time; what suits the backend if left out. */
  readonly chunk?: number;
  /** Stops between chunks. The sessions are then as they were. */
  readonly signal?: AbortSignal;
  /** Called behind each chunk; replayed tokens count. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Takes the logits of every new token, in pieces that bound the memory. */
  readonly onLogits?: (piece: LogitsPiece) => void;
}

/** Tokens that one timeline takes in. */
export interface Extension {
  readonly timeline: Timeline;
  readonly tokens: ArrayLike<number>;
  readonly signal?: AbortSignal | undefined;
}

/** Logits read at a time, in elements. */
const pieceSize = 2 ** 20;

/**
 * Runs tokens through the model, all timelines of a cache in one batch, and
 * returns the logits behind each last token; undefined where an extension's
 * signal stopped it. Either all others take their tokens in or, when it
 * throws, none does. The caller holds the locks.
 */
export async function extendTimelines(
  model: Model,
  extensions: readonly Extension[],
  options: ExtendOptions = {},
): Promise<(Float32Array | undefined)[]> {
  const { signal, onProgress, onLogits } = options;
  const { chunk = model.backend.chunk ?? 256 } = options;
  check(model, extensions, chunk);
  const runs = extensions.map((extension, session) => {
    extension.timeline.stage(extension.tokens);
    return new Run(extension, session, onLogits);
  });
  const total = runs.reduce((sum, run) => sum + run.timeline.pending, 0);
  let done = 0;
  try {
    for (;;) {
      signal?.throwIfAborted();
      const active = runs.filter((run) => run.isActive());
      if (active.length === 0) break;
      for (const group of groupByCache(active).values()) {
        done += await forward(model, group, chunk);
      }
      onProgress?.(done, total);
      await nextTurn();
    }
  } catch (error) {
    for (const { timeline } of runs) timeline.cancel();
    throw error;
  }
  return runs.map((run) => run.finish());
}

/** Nothing has changed yet when it throws. */
function check(
  model: Model,
  extensions: readonly Extension[],
  chunk: number,
): void {
  if (!Number.isSafeInteger(chunk) || chunk < 1) {
    throw new ArgumentError(
      `session: chunk must be a positive integer, got ${chunk}`,
    );
  }
  for (const { timeline, tokens } of extensions) {
    // Checks the tokens; nothing is allocated before a layer asks for it.
    model.batch([{ tokens }]);
    timeline.checkCapacity(tokens.length);
    if (timeline.length + tokens.length === 0) {
      throw new ArgumentError(
        'session: an empty session needs at least one token, got none',
      );
    }
  }
}

/** One extension on its way. */
class Run {
  logits: Float32Array | undefined;
  private readonly start: number;
  private isStopped = false;

  constructor(
    private readonly extension: Extension,
    private readonly session: number,
    private readonly onLogits: ExtendOptions['onLogits'],
  ) {
    this.start = extension.timeline.length;
  }

  get timeline(): Timeline {
    return this.extension.timeline;
  }

  isActive(): boolean {
    if (!this.isStopped && this.extension.signal?.aborted) {
      this.isStopped = true;
      this.timeline.cancel();
    }
    return !this.isStopped && this.timeline.pending > 0;
  }

  /** How many of the last of `count` tokens need their logits. */
  wanted(past: number, count: number): number {
    if (this.onLogits) {
      const fresh = Math.min(count, Math.max(0, past + count - this.start));
      if (fresh > 0) return fresh;
    }
    return count === this.timeline.pending ? 1 : 0;
  }

  /** Takes the logits `[rows, V]` of tokens from `position` on. */
  take(logits: Float32Array, rows: number, position: number): void {
    const { session } = this;
    this.logits = logits.slice(((rows - 1) / rows) * logits.length);
    if (position >= this.start) {
      this.onLogits?.({ session, position, logits, rows });
    }
  }

  finish(): Float32Array | undefined {
    if (this.isStopped) return undefined;
    const logits = this.logits ?? this.timeline.logits;
    if (logits) this.timeline.commit(logits);
    return logits;
  }
}

function groupByCache(runs: readonly Run[]): Map<Cache, Run[]> {
  const groups = new Map<Cache, Run[]>();
  for (const run of runs) {
    const { cache } = run.timeline.pool;
    const group = groups.get(cache);
    if (group) group.push(run);
    else groups.set(cache, [run]);
  }
  return groups;
}

/** The next chunk of each run, as one batch; returns its tokens. */
async function forward(
  model: Model,
  runs: readonly Run[],
  chunk: number,
): Promise<number> {
  const [first] = runs;
  if (!first) return 0;
  const { cache, steps } = first.timeline.pool;
  const isStep = runs.every(({ timeline }) => timeline.pending === 1);
  if (isStep && steps.isPossible) return forwardStep(model, steps, runs);
  const slots = runs.map(({ timeline }) => timeline.slot);
  const parts = runs.map(({ timeline }) => timeline.next(chunk));
  const batch = model.batch(parts);
  const scope = new Scope(model.backend);
  try {
    const wanted = runs.map((run, i) =>
      run.wanted(batch.pasts[i] ?? 0, batch.counts[i] ?? 0),
    );
    for (const [i, { timeline }] of runs.entries()) {
      timeline.begin(batch.counts[i] ?? 0);
    }
    const hidden = model.forward(scope, batch, { cache: { cache, slots } });
    await readLogits(model, scope, batch, hidden, runs, wanted);
    // Without a read nothing waits: the progress would run ahead of the work.
    await model.backend.synchronize();
    for (const [i, { timeline }] of runs.entries()) {
      timeline.complete(batch.counts[i] ?? 0);
    }
    return batch.tokens.length;
  } finally {
    scope.free();
    batch.free();
  }
}

/** One token of each run, on a backend that records; returns their number. */
async function forwardStep(
  { backend, config }: Model,
  steps: Steps,
  runs: readonly Run[],
): Promise<number> {
  const parts = runs.map(({ timeline }) => timeline.next(1));
  const place = {
    slots: runs.map(({ timeline }) => timeline.slot),
    pasts: parts.map(({ past }) => past),
  };
  for (const { timeline } of runs) timeline.begin(1);
  const step = steps.run(
    place,
    parts.map(({ tokens }) => tokens[0] ?? 0),
  );
  const { logits } = step;
  const values = asFloat32(await backend.read(logits.storage), logits.dtype);
  const width = config.vocabularySize;
  for (const [i, run] of runs.entries()) {
    run.take(
      values.subarray(i * width, (i + 1) * width),
      1,
      place.pasts[i] ?? 0,
    );
    run.timeline.complete(1);
  }
  return runs.length;
}

/** A row of the batch whose logits a run wants. */
interface WantedRow {
  readonly run: Run;
  readonly row: number;
  readonly position: number;
}

async function readLogits(
  model: Model,
  scope: Scope,
  batch: Batch,
  hidden: Tensor,
  runs: readonly Run[],
  wanted: readonly number[],
): Promise<void> {
  const rows = runs.flatMap((run, i): WantedRow[] => {
    const count = batch.counts[i] ?? 0;
    const skipped = count - (wanted[i] ?? 0);
    return Array.from({ length: count - skipped }, (_, k) => ({
      run,
      row: (batch.starts[i] ?? 0) + skipped + k,
      position: (batch.pasts[i] ?? 0) + skipped + k,
    }));
  });
  const { vocabularySize } = model.config;
  const most = Math.max(1, Math.floor(pieceSize / vocabularySize));
  for (let from = 0; from < rows.length; from += most) {
    const piece = rows.slice(from, from + most);
    const values = await logitsOf(model, scope, hidden, piece);
    handOut(piece, values, vocabularySize);
  }
}

/** Logits `[M, V]` of some rows of hidden states. */
async function logitsOf(
  model: Model,
  scope: Scope,
  hidden: Tensor,
  wanted: readonly WantedRow[],
): Promise<Float32Array> {
  const inner = new Scope(scope.backend);
  try {
    const rows = inner.indices(wanted.map(({ row }) => row));
    const last = inner.run(gatherRows, { x: hidden, rows }, {}).y;
    const logits = model.logits(inner, last);
    return asFloat32(await inner.read(logits), logits.dtype);
  } finally {
    inner.free();
  }
}

/** Gives each run its consecutive rows. */
function handOut(
  wanted: readonly WantedRow[],
  values: Float32Array,
  width: number,
): void {
  let from = 0;
  while (from < wanted.length) {
    const first = wanted[from];
    if (!first) return;
    let to = from + 1;
    while (wanted[to]?.run === first.run) to++;
    const logits = values.subarray(from * width, to * width);
    first.run.take(logits, to - from, first.position);
    from = to;
  }
}

function asFloat32(values: HostArray, dtype: Tensor['dtype']): Float32Array {
  if (values instanceof Float32Array) return values;
  if (values instanceof Uint16Array) {
    return dtype === 'f16' ? f16ToF32(values) : bf16ToF32(values);
  }
  return Float32Array.from(values);
}
