import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { nextTurn } from '../engine/event-loop';
import { DeviceLostError, UnsupportedError } from '../errors';
import type { Judgement } from '../verify/fuzz';
import { type BenchCase, type BenchSuite, benchSuites } from './case';
import { ceilingCases } from './ceilings';
import { layerBenches, layerCase } from './layers';
import { matmulCases } from './matmul';
import { type BenchModel, modelCases, trainingCases } from './models';
import { attentionBenches, operatorCase } from './operators';
import type { BenchProfile } from './profile';
import { type BenchReport, type BenchRow, reportOf } from './report';
import { measure } from './timing';

export interface BenchOptions {
  readonly backend: Backend;
  /** Computes in double; what figures are checked against. */
  readonly reference: Backend;
  readonly profile: BenchProfile;
  readonly dtypes: readonly FloatType[];
  /** Of the `model` and `training` suites, which are left out without it. */
  readonly model?: BenchModel | undefined;
  /** All when left out; ceilings always. */
  readonly suites?: readonly BenchSuite[] | undefined;
  /** Only cases with one of these texts in `suite name`; ceilings always. */
  readonly only?: readonly string[] | undefined;
  /** Tokens; the profile's when left out. */
  readonly contexts?: readonly number[] | undefined;
  /** Tokens that decoding generates; the profile's when left out. */
  readonly generate?: number | undefined;
  /** Tokens of a chunk of prefill; the engine's choice when left out. */
  readonly chunk?: number | undefined;
  /** Tokens of a training step; the profile's when left out. */
  readonly stepTokens?: number | undefined;
  /** Measuring time of a case; 0.5 when left out. */
  readonly seconds?: number | undefined;
  /** Repetitions of a case; 20 when left out, fewer of what takes a second. */
  readonly repetitions?: number | undefined;
  /** Ends the run; the report then holds what was done. */
  readonly signal?: AbortSignal | undefined;
}

export type BenchEvent =
  | {
      readonly type: 'start';
      readonly name: string;
      readonly done: number;
      readonly total: number;
    }
  | { readonly type: 'row'; readonly row: BenchRow }
  | { readonly type: 'report'; readonly report: BenchReport };

/** The cases that these options ask for, ceilings first. */
export function benchCases(options: BenchOptions): BenchCase[] {
  const { profile, dtypes, model, only } = options;
  const { suites = benchSuites, contexts = profile.contexts } = options;
  const { generate = profile.generate, chunk } = options;
  const { stepTokens = profile.stepTokens } = options;
  const builders: Readonly<Record<BenchSuite, () => BenchCase[]>> = {
    ceilings: () => [],
    matmul: () => dtypes.flatMap((dtype) => matmulCases(profile, dtype)),
    operators: () =>
      dtypes.flatMap((dtype) =>
        contexts.flatMap((tokens) =>
          attentionBenches(profile, tokens).map((bench) =>
            operatorCase(bench, dtype),
          ),
        ),
      ),
    layers: () =>
      dtypes.flatMap((dtype) =>
        contexts.flatMap((tokens) =>
          layerBenches(profile, tokens).flatMap((bench) =>
            passes.map((pass) => layerCase(bench, pass, dtype)),
          ),
        ),
      ),
    model: () =>
      model
        ? dtypes.flatMap((dtype) =>
            modelCases({ model, contexts, generate, chunk }, dtype),
          )
        : [],
    training: () =>
      model
        ? dtypes.flatMap((dtype) =>
            trainingCases(model, contexts, stepTokens, dtype),
          )
        : [],
  };
  const isWanted = ({ suite, name }: BenchCase) =>
    !only || only.some((text) => `${suite} ${name}`.includes(text));
  return [
    ...ceilingCases(profile, dtypes),
    ...suites.flatMap((suite) => builders[suite]().filter(isWanted)),
  ];
}

const passes = ['forward', 'backward'] as const;

/**
 * Measures a backend. Each figure stands behind a comparison with the
 * reference; where that fails, there is no figure.
 */
export async function* bench(
  options: BenchOptions,
): AsyncGenerator<BenchEvent, void, undefined> {
  const { backend, signal } = options;
  const cases = benchCases(options);
  const checks = new Map<string, Promise<Judgement>>();
  const rows: BenchRow[] = [];
  for (const [done, each] of cases.entries()) {
    const name = `${each.suite} ${each.name} ${each.dtype}`;
    yield { type: 'start', name, done, total: cases.length };
    await nextTurn();
    if (signal?.aborted) break;
    const row = await measureCase(each, checks, options);
    if (!row) break;
    rows.push(row);
    yield { type: 'row', row };
  }
  const isWhole = rows.length === cases.length;
  yield { type: 'report', report: reportOf(backend, rows, isWhole) };
}

/** The row of a case; undefined where the signal stopped it. */
async function measureCase(
  each: BenchCase,
  checks: Map<string, Promise<Judgement>>,
  options: BenchOptions,
): Promise<BenchRow | undefined> {
  const { backend, reference, signal } = options;
  const { suite, name, dtype, shape, context, tokens, check } = each;
  const row = {
    suite,
    name,
    dtype,
    shape,
    context,
    tokens,
    checkedOn: check.on,
  };
  try {
    const judging = checks.get(check.key) ?? check.judge(backend, reference);
    checks.set(check.key, judging);
    const judged = await judging;
    if ('missing' in judged) {
      return { ...row, status: 'missing', detail: judged.missing };
    }
    const worst = judged.percent;
    if (!(worst <= 100)) {
      const { detail = 'an error beyond measure' } = judged;
      return { ...row, status: 'mismatch', detail };
    }
    const cost = await each.cost();
    const timing = await timed(each, options);
    return { ...row, status: 'ok', worst, cost, timing };
  } catch (error) {
    if (signal?.aborted && error === signal.reason) return undefined;
    if (error instanceof DeviceLostError) throw error;
    if (error instanceof UnsupportedError) {
      return { ...row, status: 'missing', detail: error.message };
    }
    const detail = error instanceof Error ? error.message : String(error);
    return { ...row, status: 'failed', detail };
  }
}

async function timed(each: BenchCase, options: BenchOptions) {
  const { backend, seconds = 0.5, repetitions = 20, signal } = options;
  const prepared = await each.prepare(backend);
  try {
    return await measure(backend, prepared, { seconds, repetitions, signal });
  } finally {
    prepared.free();
  }
}
