import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { nextTurn } from '../engine/event-loop';
import { ArgumentError } from '../errors';
import type { Folder } from '../io/files';
import { type OperatorName, operators } from '../ops';
import { patterns } from './arbitraries/models';
import { differential } from './differential';
import type { FuzzOptions, Outcome } from './fuzz';
import { compareGolden, listGolden } from './golden';
import { type Law, type LawContext, laws } from './laws';
import { compareModels } from './models';
import { type Report, type Row, type Suite, summarize } from './report';

export interface VerifyOptions {
  /** On trial. */
  readonly backend: Backend;
  /** Computes in double: the CPU backend, with poisoned memory as a rule. */
  readonly reference: Backend;
  /** All that there are when left out; `golden` needs its folder. */
  readonly suites?: readonly Suite[];
  /** Reference results of other implementations. */
  readonly golden?: Folder;
  /** Types that operators are tried in; f32, f16 and bf16 when left out. */
  readonly dtypes?: readonly FloatType[];
  /** Only operators, patterns, laws and files with this in their names. */
  readonly only?: string;
  /** Random cases of each operator and type, pattern and law; 100. */
  readonly cases?: number;
  /** The same seed gives the same cases; 1 when left out. */
  readonly seed?: number;
  /** Replays one counterexample: use with `only` and one of `dtypes`. */
  readonly path?: string;
  /** What the backend cannot run, or is skipped, counts as a failure. */
  readonly require?: boolean;
  /**
   * Laws that compare two schedules of the same sums ask for equal bits.
   * True for a backend called `cpu` when left out.
   */
  readonly bitwise?: boolean;
  readonly signal?: AbortSignal;
}

export type VerifyEvent =
  | {
      readonly type: 'start';
      readonly suite: Suite;
      readonly name: string;
      readonly dtype: FloatType;
      /** Steps behind it, and steps in all. */
      readonly done: number;
      readonly total: number;
    }
  | { readonly type: 'row'; readonly row: Row }
  | { readonly type: 'report'; readonly report: Report };

interface Step {
  readonly suite: Suite;
  readonly name: string;
  readonly dtype: FloatType;
  run(): Promise<readonly Row[]>;
}

/**
 * Tries a backend: every operator and models of random shape against the
 * reference, every law, and the reference files of other implementations. The last event is the report.
 * Deterministic by seed.
 * @throws ArgumentError for options that name nothing; the signal's reason.
 */
export async function* verify(
  options: VerifyOptions,
): AsyncGenerator<VerifyEvent, void, undefined> {
  const { backend, seed = 1, require = false, signal } = options;
  const steps = await plan(options);
  const rows: Row[] = [];
  for (const [done, step] of steps.entries()) {
    signal?.throwIfAborted();
    await nextTurn();
    const { suite, name, dtype } = step;
    yield { type: 'start', suite, name, dtype, done, total: steps.length };
    for (const row of await step.run()) {
      rows.push(row);
      yield { type: 'row', row };
    }
  }
  const report = summarize(backend, seed, rows, require);
  yield { type: 'report', report };
}

/** Runs `verify` to its end. */
export async function verifyAll(options: VerifyOptions): Promise<Report> {
  for await (const event of verify(options)) {
    if (event.type === 'report') return event.report;
  }
  throw new ArgumentError('internal: verification ended without a report');
}

async function plan(options: VerifyOptions): Promise<Step[]> {
  const { golden, only = '', path } = options;
  const present: readonly Suite[] = golden ? ['golden'] : [];
  const { suites = ['operators', 'models', 'laws', ...present] } = options;
  const all: Step[] = [];
  if (suites.includes('operators')) all.push(...operatorSteps(options));
  if (suites.includes('models')) all.push(...modelSteps(options));
  if (suites.includes('laws')) all.push(...lawSteps(options));
  if (suites.includes('golden')) all.push(...(await goldenSteps(options)));
  const exact = all.filter(({ name }) => name === only);
  const steps =
    exact.length > 0 ? exact : all.filter(({ name }) => name.includes(only));
  if (steps.length === 0) {
    throw new ArgumentError(
      `verify: only must be part of the name of an operator, a pattern, a law or a file, got ${JSON.stringify(only)}`,
    );
  }
  if (path !== undefined && steps.length !== 1) {
    throw new ArgumentError(
      `verify: a path replays one operator in one type, one pattern or one law; these options choose ${steps.length}`,
    );
  }
  return steps;
}

function operatorSteps(options: VerifyOptions): Step[] {
  const { backend, reference } = options;
  const { dtypes = ['f32', 'f16', 'bf16'] } = options;
  const names = Object.keys(operators) as OperatorName[];
  return dtypes.flatMap((dtype) =>
    names.map((name) => ({
      suite: 'operators' as const,
      name,
      dtype,
      run: async () => [
        fuzzRow(
          { suite: 'operators', name, dtype },
          await differential(
            { backend, reference },
            name,
            dtype,
            fuzzOptions(options),
          ),
        ),
      ],
    })),
  );
}

function modelSteps(options: VerifyOptions): Step[] {
  const dtype = 'f32' as const;
  return patterns.map((name) => ({
    suite: 'models' as const,
    name,
    dtype,
    run: async () => [
      fuzzRow(
        { suite: 'models', name, dtype },
        await compareModels(options, name, fuzzOptions(options)),
      ),
    ],
  }));
}

function lawSteps(options: VerifyOptions): Step[] {
  const context = lawContext(options);
  const { dtype } = context;
  return laws.map((law: Law) => ({
    suite: 'laws' as const,
    name: law.name,
    dtype,
    run: async () => [
      fuzzRow(
        { suite: 'laws', name: law.name, dtype },
        await law.check(context, fuzzOptions(options)),
      ),
    ],
  }));
}

/** What laws are tried on; in f64 where the backend has it. */
export function lawContext({
  backend,
  reference,
  bitwise = backend.name === 'cpu',
}: Pick<VerifyOptions, 'backend' | 'reference' | 'bitwise'>): LawContext {
  const matrix = { shape: [1, 1], dtype: 'f64' } as const;
  const can = backend.supports('matmul', { a: matrix, b: matrix }, {});
  const dtype = can === true ? 'f64' : 'f32';
  return { backend, reference, dtype, isRowwise: bitwise };
}

async function goldenSteps({
  backend,
  golden,
}: VerifyOptions): Promise<Step[]> {
  if (!golden) {
    throw new ArgumentError('verify: the golden suite needs a folder');
  }
  const entries = await listGolden(golden);
  return entries.map((entry) => ({
    suite: 'golden' as const,
    name: entry.name,
    dtype: 'f32' as const,
    run: () => compareGolden(backend, golden, entry),
  }));
}

function fuzzOptions({
  seed = 1,
  cases = 100,
  path,
  signal,
}: VerifyOptions): FuzzOptions {
  return {
    seed,
    cases,
    ...(path !== undefined && { path }),
    ...(signal && { signal }),
  };
}

function fuzzRow(
  subject: Pick<Row, 'suite' | 'name' | 'dtype'>,
  { reasons, detail, ...outcome }: Outcome,
): Row {
  const why = detail ?? (reasons.length > 0 ? reasons.join('; ') : undefined);
  return { ...subject, ...outcome, ...(why !== undefined && { detail: why }) };
}
