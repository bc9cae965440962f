import fc from 'fast-check';
import type { LayerContext } from '../../layers/context';
import type { BatchPart } from '../../model/batch';
import { Cache } from '../../model/cache';
import type { Model } from '../../model/model';
import { Random } from '../../random';
import { Scope } from '../../scope';
import {
  describeModel,
  type ModelCase,
  modelCases,
  modelOf,
  patterns,
  tokensOf,
} from '../arbitraries/models';
import { type Comparison, compareBits, fine, worst } from '../comparison';
import { download, type Values } from '../values';
import { closeModels, type Law, type LawContext, law, sameRows } from './law';
import { isAmbiguous } from './near-ties';

interface Run {
  readonly context: LawContext;
  readonly modelCase: ModelCase;
  readonly model: Model;
  /** Token ids of each sequence. */
  readonly tokens: readonly (readonly number[])[];
}

type Pattern = (typeof patterns)[number];
type Judge = (run: Run, share: number) => Promise<Comparison>;

/** A law about models of one pattern and one more number in `[0, 1]`. */
function modelLaw(statement: string, pattern: Pattern, judge: Judge): Law {
  return law({
    name: `${pattern}: ${statement}`,
    arbitrary: fc.tuple(
      modelCases(pattern),
      fc.double({ min: 0, max: 1, noNaN: true }),
    ),
    describe: ([modelCase, share], dtype) =>
      `${describeModel(modelCase, dtype)}, share ${share}`,
    judge: async (context, [modelCase, share]) => {
      const { backend, dtype } = context;
      const model = await modelOf(backend, modelCase, dtype);
      try {
        const tokens = tokensOf(modelCase);
        return await judge({ context, modelCase, model, tokens }, share);
      } finally {
        model.free();
      }
    },
  });
}

/**
 * A law that compares two schedules. In f32 they round differently, so block
 * scores closer than that may choose different blocks, rightly.
 */
function scheduleLaw(statement: string, pattern: Pattern, judge: Judge): Law {
  return modelLaw(statement, pattern, async (run, share) => {
    const result = await judge(run, share);
    if (result.percent <= 100) return result;
    return (await isAmbiguous(run.context, run.modelCase)) ? fine : result;
  });
}

interface ForwardOptions {
  readonly form?: LayerContext['form'];
  readonly cache?: { readonly cache: Cache; readonly slots: readonly number[] };
}

/** Logits `[N, V]` of all tokens of a call. */
async function logits(
  model: Model,
  parts: readonly BatchPart[],
  options: ForwardOptions = {},
): Promise<Values> {
  const scope = new Scope(model.backend);
  const batch = model.batch(parts);
  try {
    const hidden = model.forward(scope, batch, options);
    return await download(model.logits(scope, hidden));
  } finally {
    scope.free();
    batch.free();
  }
}

const whole = ({ model, tokens }: Run, options?: ForwardOptions) =>
  logits(
    model,
    tokens.map((ids) => ({ tokens: ids })),
    options,
  );

/** Rows of a matrix, as a matrix. */
function rowsOf(
  { shape, dtype, data }: Values,
  rows: readonly number[],
): Values {
  const [, width = 0] = shape;
  return {
    shape: [rows.length, width],
    dtype,
    data: Float64Array.from(
      rows.flatMap((row) => [...data.slice(row * width, (row + 1) * width)]),
    ),
  };
}

/** The rows of each sequence of a call. */
function sequenceRows(lengths: readonly number[]): number[][] {
  let start = 0;
  return lengths.map((length) => {
    const rows = Array.from({ length }, (_, i) => start + i);
    start += length;
    return rows;
  });
}

const lengthsOf = ({ tokens }: Run) => tokens.map((ids) => ids.length);

/** Changing the tokens from t on changes nothing before t, to the bit. */
const causality: Judge = async (run, share) => {
  const { model, tokens } = run;
  const { vocabularySize } = model.config;
  const from = tokens.map((ids) => Math.floor(share * ids.length));
  const changed = tokens.map((ids, s) => ({
    tokens: ids.map((id, i) =>
      i < (from[s] ?? 0) ? id : (id + 1) % vocabularySize,
    ),
  }));
  const before = sequenceRows(lengthsOf(run)).flatMap((rows, s) =>
    rows.slice(0, from[s]),
  );
  return compareBits(
    'logits',
    rowsOf(await logits(model, changed), before),
    rowsOf(await whole(run), before),
  );
};

const forms: Judge = async (run) =>
  closeModels(
    run.context,
    'absorbed logits',
    await whole(run, { form: 'absorbed' }),
    await whole(run, { form: 'expanded' }),
  );

/** One call for all sequences, or one each. */
const packing: Judge = async (run) => {
  const all = await whole(run);
  const rows = sequenceRows(lengthsOf(run));
  const each: Comparison[] = [];
  for (const [s, ids] of run.tokens.entries()) {
    const alone = await logits(run.model, [{ tokens: ids }]);
    const packed = rowsOf(all, rows[s] ?? []);
    each.push(sameModelRows(run.context, `sequence ${s}`, packed, alone));
  }
  return worst(each);
};

/** Sequences in another order give the same outputs in that order. */
const permutation: Judge = async (run) => {
  const reversed = run.tokens.toReversed().map((ids) => ({ tokens: ids }));
  const got = await logits(run.model, reversed);
  const rows = sequenceRows(lengthsOf(run).toReversed()).toReversed().flat();
  const want = await whole(run);
  return sameModelRows(run.context, 'logits', rowsOf(got, rows), want);
};

function sameModelRows(
  context: LawContext,
  name: string,
  got: Values,
  want: Values,
): Comparison {
  return context.isRowwise
    ? sameRows(context, name, got, want)
    : closeModels(context, name, got, want);
}

/**
 * Sequences that grow call by call through a cache, each in its own steps,
 * against one call. Small shares decode token by token behind one prefill.
 */
const caching: Judge = async (run, share) => {
  const { model, tokens, context } = run;
  const capacity = Math.max(...lengthsOf(run));
  const random = Random.fromSeed(run.modelCase.seed + 2);
  const cache = new Cache(model.backend, model.config, {
    capacity,
    slots: tokens.length,
    dtype: context.dtype,
    ring: random.uniform() < 0.7,
  });
  const step = (past: number, left: number) => {
    if (share < 0.4) return past === 0 ? 1 + random.below(left) : 1;
    return Math.min(left, 1 + random.below(7));
  };
  try {
    const grown = await growing(run, cache, step);
    const rows = sequenceRows(lengthsOf(run));
    const all = await whole(run);
    return worst(
      grown.map((got, s) =>
        closeModels(context, `sequence ${s}`, got, rowsOf(all, rows[s] ?? [])),
      ),
    );
  } finally {
    cache.free();
  }
};

/** Logits of each sequence, made call by call in the slots of a cache. */
async function growing(
  { model, tokens }: Run,
  cache: Cache,
  step: (past: number, left: number) => number,
): Promise<Values[]> {
  // Sequence s lies in the slots' reverse order: rows must not be confused.
  const slotOf = (s: number) => tokens.length - 1 - s;
  const pasts = tokens.map(() => 0);
  const data = tokens.map((): number[] => []);
  for (const s of tokens.keys()) cache.resetSlot(slotOf(s));
  for (;;) {
    const open = [...tokens.keys()].filter(
      (s) => (pasts[s] ?? 0) < (tokens[s]?.length ?? 0),
    );
    if (open.length === 0) break;
    const parts = open.map((s) => {
      const past = pasts[s] ?? 0;
      const ids = tokens[s] ?? [];
      const count = step(past, ids.length - past);
      return { tokens: ids.slice(past, past + count), past };
    });
    const got = await logits(model, parts, {
      cache: { cache, slots: open.map(slotOf) },
    });
    const rows = sequenceRows(parts.map((part) => part.tokens.length));
    for (const [i, s] of open.entries()) {
      data[s]?.push(...rowsOf(got, rows[i] ?? []).data);
      pasts[s] = (pasts[s] ?? 0) + (parts[i]?.tokens.length ?? 0);
    }
  }
  const { vocabularySize } = model.config;
  return data.map((values, s) => ({
    shape: [tokens[s]?.length ?? 0, vocabularySize],
    dtype: model.dtype,
    data: Float64Array.from(values),
  }));
}

/** A window that holds every token is none. */
const wideWindow: Judge = async (run) => {
  const capacity = Math.max(...lengthsOf(run));
  const got = await withWindow(run, capacity);
  const want = await withWindow(run, undefined);
  return sameModelRows(run.context, 'logits', got, want);
};

/** Logits of a model that differs by the window of all its layers. */
async function withWindow(
  { context, modelCase, tokens }: Run,
  window: number | undefined,
): Promise<Values> {
  const { config } = modelCase;
  const attention = Object.fromEntries(
    Object.entries(config.attention).map(([letter, layer]) => [
      letter,
      { ...layer, window } as typeof layer,
    ]),
  );
  const changed = { ...modelCase, config: { ...config, attention } };
  const model = await modelOf(context.backend, changed, context.dtype);
  try {
    return await logits(
      model,
      tokens.map((ids) => ({ tokens: ids })),
    );
  } finally {
    model.free();
  }
}

const isLatent = (pattern: string) => /[GL]/.test(pattern);

export const modelLaws: readonly Law[] = [
  ...patterns.map((p) => modelLaw('causality', p, causality)),
  ...patterns
    .filter(isLatent)
    .map((p) => scheduleLaw('absorbed is expanded', p, forms)),
  ...patterns.map((p) => scheduleLaw('prefill and decode', p, caching)),
  ...patterns.map((p) => scheduleLaw('packed is separate', p, packing)),
  ...patterns.map((p) => scheduleLaw('batch permutation', p, permutation)),
  ...(['L', 'F'] as const).map((p) =>
    modelLaw('a window of all tokens is none', p, wideWindow),
  ),
];
