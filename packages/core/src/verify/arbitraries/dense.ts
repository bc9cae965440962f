import fc from 'fast-check';
import type { Random } from '../../random';
import { data, type Input, type OperatorCase, statistic } from './case';
import { dataSeed, evenWidth, extent, rowCount, width } from './sizes';

type Cases = fc.Arbitrary<OperatorCase>;

const flag = fc.boolean();

/** Indices in `[0, bound)`. */
const rowsBelow = (bound: number, shape: number): Input => ({
  shape: [shape],
  role: 'index',
  fill: (random, size) => range(size).map(() => random.below(bound)),
});

export const matmulCases: Cases = fc
  .record({
    outer: fc.oneof(
      rowCount.map((n) => [n]),
      fc.tuple(extent, extent).map((pair) => [...pair]),
    ),
    n: extent,
    k: fc.oneof(
      { weight: 8, arbitrary: extent },
      { weight: 1, arbitrary: fc.constantFrom(64, 131, 1031) },
    ),
    transposeA: flag,
    transposeB: flag,
    isSum: flag,
    seed: dataSeed,
  })
  .map(({ outer, n, k, transposeA, transposeB, isSum, seed }) => ({
    operator: 'matmul',
    inputs: {
      a: transposeA ? data(k, outer[0] ?? 1) : data(...outer, k),
      b: transposeB ? data(n, k) : data(k, n),
      ...(isSum && {
        plus: transposeA ? data(outer[0] ?? 1, n) : data(...outer, n),
      }),
    },
    attributes: { transposeA, transposeB },
    seed,
  }));

const headMatmulShape = fc.record({
  rows: rowCount,
  groups: fc.constantFrom(1, 2, 3),
  perGroup: fc.constantFrom(1, 2, 3, 4),
  k: width,
  m: width,
  transposeWeight: flag,
  seed: dataSeed,
});

export const headMatmulCases: Cases = headMatmulShape.map(
  ({ rows, groups, perGroup, k, m, transposeWeight, seed }) => {
    const heads = groups * perGroup;
    return {
      operator: 'headMatmul',
      inputs: {
        x: data(rows, groups, k),
        w: transposeWeight ? data(heads, k, m) : data(heads, m, k),
      },
      attributes: { transposeWeight },
      seed,
    };
  },
);

export const headMatmulBackwardInputCases: Cases = headMatmulShape.map(
  ({ rows, groups, perGroup, k, m, transposeWeight, seed }) => {
    const heads = groups * perGroup;
    return {
      operator: 'headMatmulBackwardInput',
      inputs: {
        dy: data(rows, heads, m),
        w: transposeWeight ? data(heads, k, m) : data(heads, m, k),
      },
      attributes: { transposeWeight, groups },
      seed,
    };
  },
);

export const headMatmulBackwardWeightCases: Cases = headMatmulShape.map(
  ({ rows, groups, perGroup, k, m, transposeWeight, seed }) => ({
    operator: 'headMatmulBackwardWeight',
    inputs: {
      x: data(rows, groups, k),
      dy: data(rows, groups * perGroup, m),
    },
    attributes: { transposeWeight },
    seed,
  }),
);

const rowShape = fc.record({
  extent,
  count: rowCount,
  tail: fc.array(extent, { maxLength: 2 }),
  seed: dataSeed,
});

export const gatherRowsCases: Cases = rowShape.map(
  ({ extent, count, tail, seed }) => ({
    operator: 'gatherRows',
    inputs: { x: data(extent, ...tail), rows: rowsBelow(extent, count) },
    attributes: {},
    seed,
  }),
);

export const gatherRowsBackwardCases: Cases = rowShape.map(
  ({ extent, count, tail, seed }) => ({
    operator: 'gatherRowsBackward',
    inputs: { dy: data(count, ...tail), rows: rowsBelow(extent, count) },
    attributes: { extent },
    seed,
  }),
);

export const scatterRowsCases: Cases = fc
  .tuple(rowShape, flag)
  .map(([{ extent, count, tail, seed }, isIndex]) => {
    const rows = Math.min(extent, count);
    const cells = (n: number): Input =>
      isIndex
        ? { ...rowsBelow(1000, 0), shape: [n, ...tail] }
        : data(n, ...tail);
    return {
      operator: 'scatterRows',
      inputs: {
        target: cells(extent),
        x: cells(rows),
        rows: {
          shape: [rows],
          role: 'index',
          fill: (random, size) => shuffled(random, extent).slice(0, size),
        },
      },
      attributes: {},
      seed,
    };
  });

const anyShape = fc.tuple(rowCount, extent).map((pair) => [...pair]);

export const addCases: Cases = fc
  .record({ shape: anyShape, seed: dataSeed })
  .map(({ shape, seed }) => ({
    operator: 'add',
    inputs: { a: data(...shape), b: data(...shape) },
    attributes: {},
    seed,
  }));

export const castCases: Cases = fc
  .record({
    shape: anyShape,
    dtype: fc.constantFrom('f32', 'f16', 'bf16', 'f64'),
    seed: dataSeed,
  })
  .map(({ shape, dtype, seed }) => ({
    operator: 'cast',
    inputs: { x: data(...shape) },
    attributes: { dtype },
    seed,
  }));

const normShape = fc.record({
  rows: rowCount,
  groups: fc.option(fc.constantFrom(1, 2, 3), { nil: undefined }),
  width: fc.oneof(width, fc.constantFrom(64, 129)),
  eps: fc.constantFrom(1e-6, 1e-5),
  seed: dataSeed,
});

export const rmsNormCases: Cases = normShape.map(
  ({ rows, groups, width, eps, seed }) => {
    const weight = groups === undefined ? [width] : [groups, width];
    return {
      operator: 'rmsNorm',
      inputs: { x: data(rows, ...weight), weight: data(...weight) },
      attributes: { eps },
      seed,
    };
  },
);

export const rmsNormBackwardCases: Cases = fc
  .tuple(normShape, flag)
  .map(([{ rows, groups, width, eps, seed }, isSum]) => {
    const weight = groups === undefined ? [width] : [groups, width];
    const x = data(rows, ...weight);
    return {
      operator: 'rmsNormBackward',
      inputs: { x, weight: data(...weight), dy: x, ...(isSum && { plus: x }) },
      attributes: { eps },
      seed,
    };
  });

export const ropeCases: Cases = fc
  .record({
    rows: rowCount,
    heads: fc.constantFrom(1, 2, 3),
    width: evenWidth,
    style: fc.constantFrom('half', 'interleaved'),
    inverse: flag,
    positions: fc.constantFrom(2, 100, 8192, 131_072),
    seed: dataSeed,
  })
  .map(({ rows, heads, width, style, inverse, positions, seed }) => ({
    operator: 'rope',
    inputs: {
      x: data(rows, heads, width),
      positions: rowsBelow(positions, rows),
      frequencies: {
        ...statistic(width / 2),
        fill: (_: Random, size: number) =>
          range(size).map((i) => 10_000 ** (-i / size)),
      },
    },
    attributes: { style, inverse },
    seed,
  }));

const gateShape = fc.record({ shape: anyShape, up: flag, seed: dataSeed });

export const swigluCases: Cases = gateShape.map(({ shape, up, seed }) => ({
  operator: 'swiglu',
  inputs: { gate: data(...shape), ...(up && { up: data(...shape) }) },
  attributes: {},
  seed,
}));

export const swigluBackwardCases: Cases = gateShape.map(
  ({ shape, up, seed }) => ({
    operator: 'swigluBackward',
    inputs: {
      gate: data(...shape),
      ...(up && { up: data(...shape) }),
      dy: data(...shape),
    },
    attributes: {},
    seed,
  }),
);

const lossShape = fc.record({
  rows: rowCount,
  vocabulary: fc.constantFrom(1, 2, 7, 16, 17, 64, 67, 1031),
  seed: dataSeed,
});

/** Every fourth row or so is not counted. */
const targetsBelow = (vocabulary: number, rows: number): Input => ({
  shape: [rows],
  role: 'index',
  fill: (random, size) =>
    range(size).map(() =>
      random.uniform() < 0.25 ? -1 : random.below(vocabulary),
    ),
});

export const crossEntropyCases: Cases = lossShape.map(
  ({ rows, vocabulary, seed }) => ({
    operator: 'crossEntropy',
    inputs: {
      logits: data(rows, vocabulary),
      targets: targetsBelow(vocabulary, rows),
    },
    attributes: {},
    seed,
  }),
);

export const crossEntropyBackwardCases: Cases = lossShape.map(
  ({ rows, vocabulary, seed }) => ({
    operator: 'crossEntropyBackward',
    inputs: {
      logits: data(rows, vocabulary),
      targets: targetsBelow(vocabulary, rows),
      dLoss: statistic(rows),
    },
    derived: {
      operator: 'crossEntropy',
      inputs: { logits: 'logits', targets: 'targets' },
      outputs: ['lse'],
      attributes: {},
    },
    attributes: {},
    seed,
  }),
);

const gatedShape = fc.record({
  rows: rowCount,
  heads: fc.constantFrom(1, 2, 3, 4),
  width,
  window: flag,
  bias: flag,
  seed: dataSeed,
});

type GatedShape = typeof gatedShape extends fc.Arbitrary<infer T> ? T : never;

function gatedInputs({ rows, heads, width, window, bias }: GatedShape) {
  const branches = window ? 3 : 2;
  const branch = data(rows, heads, width);
  return {
    gates: data(rows, heads, branches),
    ...(bias && { bias: data(heads, branches) }),
    compressed: branch,
    selected: branch,
    ...(window && { window: branch }),
  };
}

export const gatedSumCases: Cases = gatedShape.map((shape) => ({
  operator: 'gatedSum',
  inputs: gatedInputs(shape),
  attributes: {},
  seed: shape.seed,
}));

export const gatedSumBackwardCases: Cases = gatedShape.map((shape) => ({
  operator: 'gatedSumBackward',
  inputs: {
    ...gatedInputs(shape),
    dY: data(shape.rows, shape.heads, shape.width),
  },
  attributes: {},
  seed: shape.seed,
}));

export const squaredNormCases: Cases = fc
  .record({ shape: anyShape, seed: dataSeed })
  .map(({ shape, seed }) => ({
    operator: 'squaredNorm',
    inputs: { x: data(...shape), total: positive(statistic(1)) },
    attributes: {},
    seed,
  }));

export const adamwCases: Cases = fc
  .record({
    shape: anyShape,
    learningRate: fc.constantFrom(0.1, 1e-3),
    weightDecay: fc.constantFrom(0.1, 0),
    step: fc.constantFrom(1, 2, 1000),
    norm: fc.constantFrom('none', 'given', 'clip'),
    lossScale: fc.constantFrom(undefined, 1, 4, 1024),
    hasMasters: flag,
    seed: dataSeed,
  })
  .map(({ shape, norm, hasMasters, seed, ...rest }) => ({
    operator: 'adamw',
    inputs: {
      parameter: (hasMasters ? statistic : data)(...shape),
      gradient: data(...shape),
      m: (hasMasters ? statistic : data)(...shape),
      v: positive((hasMasters ? statistic : data)(...shape)),
      ...(hasMasters && { rounded: data(...shape) }),
      ...(norm !== 'none' && { squaredNorm: positive(statistic(1)) }),
    },
    attributes: {
      ...rest,
      beta1: 0.9,
      beta2: 0.95,
      eps: 1e-8,
      ...(norm === 'clip' && { clip: 0.5 }),
    },
    seed,
  }));

export const sampleCases: Cases = fc
  .record({
    rows: fc.constantFrom(1, 2, 3, 7),
    vocabulary: fc.oneof(width, fc.constantFrom(257, 1031)),
    cut: fc.constantFrom(0, 0, 1),
    temperature: fc.constantFrom(0, 0.5, 1, 3),
    topK: fc.constantFrom(1, 2, 5, 40, 2000),
    topP: fc.constantFrom(1, 0.9, 0.3),
    minP: fc.constantFrom(0, 0, 0.05, 1),
    seed: dataSeed,
  })
  .map(({ rows, vocabulary, cut, temperature, topK, topP, minP, seed }) => ({
    operator: 'sample',
    inputs: {
      logits: data(rows, vocabulary),
      settings: {
        ...statistic(rows, 5),
        fill: (random: Random) =>
          Float64Array.from(
            range(rows).flatMap(() => [
              temperature,
              topK,
              topP,
              minP,
              random.uniform(),
            ]),
          ),
      },
    },
    attributes: { width: Math.max(1, vocabulary - cut) },
    seed,
  }));

/** Squares, away from 0: what sums of squares look like. */
function positive(input: Input): Input {
  return {
    ...input,
    fill: (random, size) =>
      Float64Array.from({ length: size }, () => 0.25 + random.normal() ** 2),
  };
}

export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** `[0, count)` in random order (Fisher-Yates). */
function shuffled(random: Random, count: number): number[] {
  const values = range(count);
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [values[i], values[j]] = [values[j] ?? 0, values[i] ?? 0];
  }
  return values;
}
