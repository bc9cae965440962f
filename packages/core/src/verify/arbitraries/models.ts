import fc from 'fast-check';
import type { Backend } from '../../backend';
import type { FloatType } from '../../dtype';
import {
  type ModelConfig,
  type ModelConfigInput,
  parseConfig,
} from '../../model/config';
import { Model } from '../../model/model';
import { modelParameters, uploadParameters } from '../../model/parameters';
import { Random } from '../../random';
import { sizeOf } from '../../tensor';
import { roundedTo } from '../values';
import { dataSeed } from './sizes';

/** A small model of random shape, and the tokens it is run on. */
export interface ModelCase {
  readonly config: ModelConfig;
  /** Token counts of the sequences. */
  readonly lengths: readonly number[];
  readonly seed: number;
}

/** More than the tokens of a case, so that no two of them are alike. */
const vocabularySize = 97;

const blocks = fc.constantFrom(
  { length: 1, stride: 1, blockSize: 1, sharing: 1 },
  { length: 2, stride: 2, blockSize: 2, sharing: 1 },
  { length: 2, stride: 2, blockSize: 4, sharing: 4 },
  { length: 4, stride: 2, blockSize: 4, sharing: 2 },
  { length: 6, stride: 2, blockSize: 6, sharing: 3 },
  { length: 4, stride: 4, blockSize: 4, sharing: 4 },
  { length: 8, stride: 4, blockSize: 8, sharing: 4 },
);

const sparse = fc
  .record({
    blocks,
    kind: fc.constantFrom('mean', 'weighted', 'linear', 'mlp'),
    rope: fc.constantFrom('rotated-mean', 'block-start', 'none'),
    initial: fc.constantFrom(0, 1),
    local: fc.constantFrom(1, 2),
    free: fc.constantFrom(0, 1, 2),
  })
  .map(({ blocks, kind, rope, initial, local, free }) => {
    const { length, stride, blockSize, sharing } = blocks;
    return {
      compression: { length, stride, kind, rope } as const,
      selection: {
        blockSize,
        sharing,
        initial,
        local,
        count: initial + local + free,
      },
    };
  });

const groups = fc.constantFrom(1, 2);
const window = fc.constantFrom(1, 2, 3, 5, 8);
const optional = <T>(arbitrary: fc.Arbitrary<T>) =>
  fc.option(arbitrary, { nil: undefined });

type Attention = ModelConfigInput['attention'][string];

const latent = {
  heads: 2,
  contentWidth: 4,
  valueWidth: 3,
  ropeWidth: 2,
  latentWidth: 5,
} as const;

/** Every kind of attention, by its letter. */
const attentions = {
  /** ASA's global layer. */
  G: fc.tuple(sparse, groups, optional(fc.constant(6)), fc.boolean()).map(
    ([shape, groups, queryLatentWidth, gateBias]): Attention => ({
      kind: 'gla',
      ...latent,
      ...shape,
      groups,
      queryLatentWidth,
      gateBias,
    }),
  ),
  /** ASA's local layer; DeepSeek's without a window. */
  L: fc.tuple(optional(window), optional(fc.constant(6))).map(
    ([window, queryLatentWidth]): Attention => ({
      kind: 'mla',
      ...latent,
      window,
      queryLatentWidth,
    }),
  ),
  N: fc
    .tuple(sparse, groups, window, fc.constantFrom('shared', 'independent'))
    .map(
      ([shape, keyValueHeads, window, keyValues]): Attention => ({
        kind: 'nsa',
        heads: 2,
        keyValueHeads,
        headWidth: 4,
        valueWidth: 3,
        window,
        keyValues: keyValues as 'shared' | 'independent',
        ...shape,
      }),
    ),
  F: fc.tuple(optional(window), groups).map(
    ([window, keyValueHeads]): Attention => ({
      kind: 'gqa',
      heads: 2,
      keyValueHeads,
      headWidth: 4,
      window,
    }),
  ),
  R: fc.constantFrom(1, 3, 64).map(
    (chunk): Attention => ({
      kind: 'linear',
      heads: 2,
      keyWidth: 3,
      valueWidth: 4,
      chunk,
    }),
  ),
};

/** Every layer alone, and the models that are made of them. */
export const patterns = ['F', 'L', 'G', 'N', 'R', 'GL', 'GLL', 'GR'] as const;

/** @param longest tokens of a sequence. */
export function modelCases(
  pattern: (typeof patterns)[number],
  longest = 24,
): fc.Arbitrary<ModelCase> {
  const letters = [...new Set(pattern)] as (keyof typeof attentions)[];
  return fc
    .record({
      attention: fc.record(
        Object.fromEntries(letters.map((x) => [x, attentions[x]])),
      ),
      style: fc.constantFrom('half', 'interleaved'),
      tieEmbeddings: fc.boolean(),
      lengths: fc.array(fc.integer({ min: 1, max: longest }), {
        minLength: 1,
        maxLength: 3,
      }),
      seed: dataSeed,
    })
    .map(({ attention, style, tieEmbeddings, lengths, seed }) => ({
      config: parseConfig({
        vocabularySize,
        hiddenSize: 6,
        intermediateSize: 7,
        layers: pattern.length,
        pattern,
        attention,
        rope: { style },
        tieEmbeddings,
        context: 64,
        // A norm of next to nothing would magnify rounding without bound.
        normEps: 0.1,
      }),
      lengths,
      seed,
    }));
}

/**
 * Weights large enough that attention is far from uniform.
 * @param rounded the type that they are rounded to first: a reference in
 *   double gets the weights of the model on trial.
 */
export async function modelOf(
  backend: Backend,
  { config, seed }: ModelCase,
  dtype: FloatType,
  rounded = dtype,
): Promise<Model> {
  const random = Random.fromSeed(seed);
  const parameters = await uploadParameters(
    backend,
    dtype,
    modelParameters(config),
    async ({ shape, init }) => {
      const isConstant = 'constant' in init;
      const mean = isConstant ? init.constant : 0;
      const deviation = isConstant ? 0.3 : 1 / Math.sqrt(shape.at(-1) ?? 1);
      const values = Float64Array.from(
        { length: sizeOf(shape) },
        () => mean + deviation * random.normal(),
      );
      return roundedTo(values, rounded);
    },
  );
  return new Model(backend, config, parameters);
}

/**
 * The tokens of each sequence, all different: equal tokens would make block
 * scores that tie but for rounding.
 */
export function tokensOf({ lengths, seed }: ModelCase): number[][] {
  const random = Random.fromSeed(seed + 1);
  const left = Array.from({ length: vocabularySize }, (_, i) => i);
  return lengths.map((length) =>
    Array.from(
      { length },
      () => left.splice(random.below(left.length), 1)[0] ?? 0,
    ),
  );
}

export function describeModel(
  { config, lengths, seed }: ModelCase,
  dtype: FloatType,
): string {
  const { pattern, attention, rope, tieEmbeddings } = config;
  const shape = { attention, rope: rope.style, tieEmbeddings };
  return `pattern ${pattern}, lengths [${lengths.join(', ')}], ${dtype}, ${JSON.stringify(shape)}, data ${seed}`;
}
