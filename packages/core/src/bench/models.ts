import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { Engine } from '../engine/engine';
import type { Session } from '../engine/session';
import { type ModelConfig, parseConfig } from '../model/config';
import { Model } from '../model/model';
import { modelParameters, type Parameters } from '../model/parameters';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { Documents } from '../train/documents';
import { Trainer } from '../train/trainer';
import { compareValues, relativeAllowance } from '../verify/comparison';
import type { Values } from '../verify/values';
import type { BenchCase, Check, Prepared } from './case';
import type { Cost } from './cost';
import { CountingBackend } from './counting-backend';
import {
  type Draw,
  doubleDraw,
  emptyDraw,
  normalDraw,
  randomTokens,
} from './fill';
import { gradientTolerance, modelTolerance } from './tolerance';

/** A model to measure. */
export interface BenchModel {
  readonly name: string;
  readonly config: ModelConfig;
  /** Loads it; random weights when left out. The caller frees the model. */
  readonly load?: (backend: Backend, dtype: FloatType) => Promise<Model>;
}

export interface ModelBenchOptions {
  readonly model: BenchModel;
  readonly contexts: readonly number[];
  /** Tokens that decoding generates. */
  readonly generate: number;
  /** Tokens of a chunk of prefill; the engine's choice when left out. */
  readonly chunk?: number | undefined;
}

/** Prefill (`pp`) and decoding (`tg`) at depth, as llama-bench names them. */
export function modelCases(
  options: ModelBenchOptions,
  dtype: FloatType,
): BenchCase[] {
  const { contexts, generate, model } = options;
  // What is generated has to fit behind it.
  const deepest = Math.max(0, model.config.context - generate - 1);
  const depths = new Set([0, ...contexts.map((n) => Math.min(n, deepest))]);
  return [
    ...contexts.map((tokens) => prefillCase(options, dtype, tokens)),
    ...[...depths].map((depth) => decodeCase(options, dtype, depth)),
  ];
}

function prefillCase(
  options: ModelBenchOptions,
  dtype: FloatType,
  tokens: number,
): BenchCase {
  const { config } = options.model;
  const ids = randomTokens(tokens, config.vocabularySize, 1);
  return engineCase(options, dtype, {
    name: `pp${tokens}`,
    context: tokens,
    tokens,
    capacity: tokens,
    start: async (engine) => {
      const session = engine.session({ capacity: tokens });
      return {
        before: async () => session.reset(),
        run: async () => {
          await session.extend(ids, chunkOf(options));
        },
      };
    },
  });
}

function decodeCase(
  options: ModelBenchOptions,
  dtype: FloatType,
  depth: number,
): BenchCase {
  const { generate, model } = options;
  const [first = 0, ...past] = randomTokens(
    depth + 1,
    model.config.vocabularySize,
    2,
  );
  const capacity = depth + generate + 1;
  return engineCase(options, dtype, {
    name: depth > 0 ? `tg${generate} @ d${depth}` : `tg${generate}`,
    context: depth,
    tokens: generate,
    capacity,
    start: async (engine) => {
      // No ring: going back to the depth must not run it again.
      const session = engine.session({ capacity, ring: false });
      if (depth > 0) await session.extend(past, chunkOf(options));
      return {
        before: async () => session.rollback(depth),
        run: () => generateTokens(engine, session, first, generate),
      };
    },
  });
}

async function generateTokens(
  engine: Engine,
  session: Session,
  first: number,
  count: number,
): Promise<void> {
  for await (const _ of engine.generate(session, {
    prompt: [first],
    maxTokens: count,
    temperature: 0,
    eos: [],
  }));
}

const chunkOf = ({ chunk }: ModelBenchOptions) =>
  chunk === undefined ? {} : { chunk };

interface EngineWork {
  readonly name: string;
  readonly context: number;
  readonly tokens: number;
  /** Tokens that the session has to hold. */
  readonly capacity: number;
  start(engine: Engine): Promise<Pick<Prepared, 'before' | 'run'>>;
}

function engineCase(
  { model }: ModelBenchOptions,
  dtype: FloatType,
  { start, ...work }: EngineWork,
): BenchCase {
  const { name, context, tokens } = work;
  return {
    suite: 'model',
    name,
    context,
    tokens,
    dtype,
    shape: model.name,
    check: within(model.config, work, engineCheck(model.config, dtype)),
    cost: () => costOfWork(model.config, dtype, start),
    prepare: async (backend) => {
      const loaded = await loadBenchModel(model, backend, dtype);
      const engine = Engine.from(loaded);
      const free = () => {
        engine.free();
        loaded.free();
      };
      try {
        return { ...(await start(engine)), free };
      } catch (error) {
        free();
        throw error;
      }
    },
  };
}

/** A check that says so where the model's context is too short for the work. */
function within(
  { context }: ModelConfig,
  { name, capacity }: { readonly name: string; readonly capacity: number },
  check: Check,
): Check {
  if (capacity <= context) return check;
  const missing = `the model's context has ${context} tokens`;
  return { key: `${name} too long`, on: '', judge: async () => ({ missing }) };
}

async function costOfWork(
  config: ModelConfig,
  dtype: FloatType,
  start: EngineWork['start'],
): Promise<Cost> {
  const counting = new CountingBackend();
  const engine = Engine.from(drawModel(counting, config, dtype, emptyDraw));
  const { before, run } = await start(engine);
  await before?.();
  counting.takeCost();
  await run();
  return counting.takeCost();
}

/**
 * Steps of AdamW over rows that fill `stepTokens`; `dtype` is that of weights
 * and activations.
 */
export function trainingCases(
  model: BenchModel,
  contexts: readonly number[],
  stepTokens: number,
  dtype: FloatType,
): BenchCase[] {
  return contexts.map((context) => {
    const rows = Math.max(1, Math.floor(stepTokens / context));
    const name = `train ${rows} x ${context}`;
    const work = { name, capacity: context };
    return {
      suite: 'training',
      name,
      dtype,
      shape: model.name,
      context,
      tokens: rows * context,
      check: within(model.config, work, trainingCheck(model.config, dtype)),
      cost: () => costOfTraining(model.config, rows, context, dtype),
      prepare: async (backend) => {
        const loaded = await loadBenchModel(model, backend, dtype);
        const trainer = trainerOf(loaded, rows, context);
        return {
          run: async () => {
            await trainer.step();
          },
          free: () => {
            trainer.free();
            loaded.free();
          },
        };
      },
    };
  });
}

async function costOfTraining(
  config: ModelConfig,
  rows: number,
  context: number,
  dtype: FloatType,
): Promise<Cost> {
  const counting = new CountingBackend();
  const model = drawModel(counting, config, dtype, emptyDraw);
  const trainer = trainerOf(model, rows, context);
  counting.takeCost();
  await trainer.step();
  return counting.takeCost();
}

function trainerOf(model: Model, rows: number, context: number): Trainer {
  const { vocabularySize } = model.config;
  const tokens = randomTokens((rows + 1) * context + 1, vocabularySize, 3);
  return new Trainer(model, Documents.of([tokens]), {
    steps: 1000,
    context,
    rows,
    schedule: { kind: 'constant', peak: 1e-4, warmup: 0 },
  });
}

async function loadBenchModel(
  { config, load }: BenchModel,
  backend: Backend,
  dtype: FloatType,
): Promise<Model> {
  return load
    ? load(backend, dtype)
    : drawModel(backend, config, dtype, normalDraw);
}

/** A model of random weights with the deviations that training starts from. */
function drawModel(
  backend: Backend,
  config: ModelConfig,
  dtype: FloatType,
  draw: Draw,
): Model {
  const scope = new Scope(backend);
  const made = new Map<string, Tensor>();
  try {
    for (const { name, shape, init } of modelParameters(config)) {
      const seed = 1 + made.size;
      // Constants start as 1 or 0; numbers about them measure the same.
      const deviation = 'normal' in init ? init.normal : 1;
      made.set(name, draw(scope, shape, dtype, seed, deviation));
    }
    const parameters: Parameters = made;
    const model = new Model(backend, config, parameters);
    for (const tensor of made.values()) scope.keep(tensor);
    return model;
  } finally {
    scope.free();
  }
}

/** Tokens of a check that are taken in at once, and one by one. */
const PREFILL = 33;
const DECODED = 4;
/** Widths of a check that are no attention's. */
const VOCABULARY = 1031;
const HIDDEN = 128;
const INNER = 256;

/**
 * The same attention with one layer of each kind between narrower states: what
 * the reference can do in a second. All blocks of so few tokens are selected, so
 * that no list hangs on the rounding of a score.
 */
function checkedConfig(config: ModelConfig): ModelConfig {
  const letters = new Set(config.pattern);
  const { bos: _, ...rest } = config;
  return parseConfig({
    ...rest,
    pattern: [...letters],
    layers: letters.size,
    vocabularySize: Math.min(config.vocabularySize, VOCABULARY),
    hiddenSize: Math.min(config.hiddenSize, HIDDEN),
    intermediateSize: Math.min(config.intermediateSize, INNER),
    context: PREFILL + DECODED,
    eos: [],
  });
}

const words = ({ layers, hiddenSize }: ModelConfig, tokens: number) =>
  `${layers} layers, hidden ${hiddenSize}, ${tokens} tokens`;

function engineCheck(config: ModelConfig, dtype: FloatType): Check {
  const small = checkedConfig(config);
  return {
    key: `engine ${JSON.stringify(small)} ${dtype}`,
    on: words(small, PREFILL + DECODED),
    judge: async (backend, reference) => {
      const got = await logitsOf(drawModel(backend, small, dtype, normalDraw));
      const double = doubleDraw(dtype);
      const want = await logitsOf(drawModel(reference, small, 'f64', double));
      const relative = modelTolerance(dtype, small.layers);
      const allowed = relativeAllowance(want, relative);
      return compareValues('logits', got, want, allowed);
    },
  };
}

/** Logits behind a prompt and behind each of the tokens after it. */
async function logitsOf(model: Model): Promise<Values> {
  const { vocabularySize } = model.config;
  const tokens = randomTokens(PREFILL + DECODED, vocabularySize, 4);
  const engine = Engine.from(model);
  try {
    const session = engine.session();
    const rows = [...(await session.extend(tokens.subarray(0, PREFILL)))];
    for (const token of tokens.subarray(PREFILL)) {
      rows.push(...(await session.extend([token])));
    }
    return {
      shape: [1 + DECODED, vocabularySize],
      dtype: 'f32',
      data: Float64Array.from(rows),
    };
  } finally {
    engine.free();
    model.free();
  }
}

function trainingCheck(config: ModelConfig, dtype: FloatType): Check {
  const small = checkedConfig(config);
  return {
    key: `training ${JSON.stringify(small)} ${dtype}`,
    on: `${words(small, PREFILL)}, 2 steps`,
    judge: async (backend, reference) => {
      const got = await lossesOf(drawModel(backend, small, dtype, normalDraw));
      const double = doubleDraw(dtype);
      const want = await lossesOf(drawModel(reference, small, 'f64', double));
      const relative = gradientTolerance(dtype, small.layers);
      const allowed = relativeAllowance(want, relative);
      return compareValues('loss', got, want, allowed);
    },
  };
}

/** Losses and gradient norms of two steps. */
async function lossesOf(model: Model): Promise<Values> {
  const trainer = trainerOf(model, 1, PREFILL);
  try {
    const steps = [await trainer.step(), await trainer.step()];
    const data = steps.flatMap(({ loss, gradientNorm }) => [
      loss,
      gradientNorm,
    ]);
    return { shape: [2, 2], dtype: 'f32', data: Float64Array.from(data) };
  } finally {
    trainer.free();
    model.free();
  }
}
