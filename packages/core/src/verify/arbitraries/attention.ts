import fc from 'fast-check';
import type { OperatorName } from '../../ops';
import type { Random } from '../../random';
import { leaderCount, type Sequences } from '../../sequences';
import {
  type Derived,
  data,
  type Input,
  type OperatorCase,
  statistic,
} from './case';
import { range } from './dense';
import {
  blocking,
  dataSeed,
  evenWidth,
  heads,
  layOutParts,
  parts,
  width,
} from './sizes';

type Cases = fc.Arbitrary<OperatorCase>;

const operandShape = fc.record({
  heads,
  width,
  valueWidth: width,
  rope: fc.option(evenWidth, { nil: undefined }),
  /** Absorbed latent attention: keys and values are one tensor. */
  isLatent: fc.boolean(),
  /** Rows behind the last sequence. */
  tail: fc.constantFrom(0, 0, 1),
  scale: fc.constantFrom(1, 0.5, 2),
  seed: dataSeed,
});

type OperandShape =
  typeof operandShape extends fc.Arbitrary<infer T> ? T : never;

/** Thousands of steps get one narrow head, so that a case stays quick. */
function narrowed(shape: OperandShape, sequences: Sequences): OperandShape {
  if (sequences.maxKeys < 500) return shape;
  return {
    ...shape,
    heads: { groups: 1, heads: 1 },
    width: Math.min(4, shape.width),
    valueWidth: Math.min(4, shape.valueWidth),
    rope: undefined,
  };
}

interface Operands {
  readonly inputs: Record<string, Input>;
  readonly alias: Record<string, string>;
  readonly scale: number;
}

function operands(
  { heads: { heads, groups }, ...shape }: OperandShape,
  queries: number,
  keys: number,
): Operands {
  const { width, rope, isLatent } = shape;
  const rows = [queries + shape.tail, keys + shape.tail] as const;
  const valueWidth = isLatent ? width : shape.valueWidth;
  return {
    inputs: {
      q: data(rows[0], heads, width),
      k: data(rows[1], groups, width),
      ...(!isLatent && { v: data(rows[1], groups, valueWidth) }),
      ...(rope && {
        qRope: data(rows[0], heads, rope),
        kRope: data(rows[1], 1, rope),
      }),
    },
    alias: isLatent ? { v: 'k' } : {},
    scale: shape.scale / Math.sqrt(width + (rope ?? 0)),
  };
}

const operandNames = ['q', 'k', 'v', 'qRope', 'kRope', 'indices'];

const sameNames = (names: readonly string[]) =>
  Object.fromEntries(names.map((name) => [name, name]));

/** The backward case of a forward one: `o` and `lse` are its results. */
function backwardOf(
  forward: OperatorCase,
  operator: OperatorName,
  { isSum, isKnown }: { isSum: boolean; isKnown: boolean },
): OperatorCase {
  const { q, v, k } = forward.inputs;
  const [rows = 0, heads = 0, width = 0] = q?.shape ?? [];
  const valueWidth = (v ?? k)?.shape[2] ?? 0;
  const derived: Derived = {
    operator: forward.operator,
    attributes: forward.attributes,
    inputs: sameNames(operandNames),
    outputs: ['o', 'lse'],
  };
  return {
    ...forward,
    operator,
    derived,
    inputs: {
      ...forward.inputs,
      dO: data(rows, heads, valueWidth),
      ...(isSum && { plus: data(rows, heads, width) }),
    },
    ...(isKnown && { products: { delta: ['o', 'dO'] as const } }),
  };
}

const given = fc.record({ isSum: fc.boolean(), isKnown: fc.boolean() });
const backwardForms = (forwards: Cases, operator: OperatorName): Cases =>
  fc
    .tuple(forwards, given)
    .map(([forward, given]) => backwardOf(forward, operator, given));

const windows = fc.option(
  fc.constantFrom(1, 2, 3, 4, 7, 8, 9, 16, 17, 64, 5000),
  { nil: undefined },
);

function attentionForms(self: boolean, isLong = true): Cases {
  return fc
    .record({
      shape: operandShape,
      parts: parts(self, isLong),
      window: windows,
    })
    .map(({ shape, parts, window }) => {
      const sequences = layOutParts(parts);
      const { queryRows, keyRows } = sequences;
      const { scale, ...given } = operands(
        narrowed(shape, sequences),
        queryRows,
        keyRows,
      );
      return {
        operator: 'attention',
        ...given,
        attributes: { sequences, scale, window },
        seed: shape.seed,
      };
    });
}

export const attentionCases = attentionForms(false);
export const attentionSelfCases = attentionForms(true, false);
export const attentionBackwardCases = backwardForms(
  attentionForms(true),
  'attentionBackward',
);

function compressedForms(self: boolean, isLong = true): Cases {
  return fc
    .record({ shape: operandShape, parts: parts(self, isLong), blocking })
    .map(({ shape, parts, blocking }) => {
      const sequences = layOutParts(parts, blocking);
      const { length, stride } = blocking;
      const { scale, ...given } = operands(
        narrowed(shape, sequences),
        sequences.queryRows,
        sequences.blockRows(blocking),
      );
      return {
        operator: 'compressedAttention',
        ...given,
        attributes: { sequences, scale, length, stride },
        seed: shape.seed,
      };
    });
}

export const compressedAttentionCases = compressedForms(false);
export const compressedAttentionSelfCases = compressedForms(true, false);
export const compressedAttentionBackwardCases = backwardForms(
  compressedForms(true),
  'compressedAttentionBackward',
);

function selectedForms(self: boolean, isLong = true): Cases {
  return fc
    .record({
      shape: operandShape,
      parts: parts(self, isLong),
      blocking,
      count: fc.constantFrom(1, 2, 3, 5, 8),
      listPerHead: fc.boolean(),
    })
    .map(({ parts, blocking, count, listPerHead, ...rest }) => {
      const sequences = layOutParts(parts, blocking);
      const shape = narrowed(rest.shape, sequences);
      const { sharing, blockSize } = blocking;
      const { scale, inputs, alias } = operands(
        shape,
        sequences.queryRows,
        sequences.keyRows,
      );
      const groups = listPerHead ? shape.heads.heads : shape.heads.groups;
      const leaders = sequences.leaderRows(sharing) + shape.tail;
      return {
        operator: 'selectedAttention',
        alias,
        inputs: {
          ...inputs,
          indices: blockLists([leaders, groups, count], sequences, blocking),
        },
        attributes: { sequences, scale, blockSize, sharing },
        seed: shape.seed,
      };
    });
}

export const selectedAttentionCases = selectedForms(false);
export const selectedAttentionSelfCases = selectedForms(true, false);
export const selectedAttentionBackwardCases = backwardForms(
  selectedForms(true),
  'selectedAttentionBackward',
);

/**
 * Ascending lists of distinct blocks up to each leader's own, -1 behind; now
 * and then without the own block, or without any.
 */
function blockLists(
  shape: [leaders: number, groups: number, count: number],
  sequences: Sequences,
  { sharing, blockSize }: { sharing: number; blockSize: number },
): Input {
  const [, groups, count] = shape;
  return {
    shape,
    role: 'index',
    fill: (random, size) => {
      const lists = new Int32Array(size).fill(-1);
      for (const sequence of sequences.list) {
        const { leaderStart, queryCount, keyCount } = sequence;
        const first = keyCount - queryCount;
        const leaders = leaderCount(first, queryCount, sharing);
        for (let row = 0; row < leaders * groups; row++) {
          const leader = Math.floor(first / sharing) + Math.floor(row / groups);
          const own = Math.floor((leader * sharing) / blockSize);
          lists.set(
            oneList(random, own, count),
            (leaderStart * groups + row) * count,
          );
        }
      }
      return lists;
    },
  };
}

function oneList(random: Random, own: number, count: number): number[] {
  const isEmpty = random.uniform() < 0.05;
  const hasOwn = random.uniform() < 0.8;
  if (isEmpty) return [];
  const chosen = new Set<number>(hasOwn ? [own] : []);
  for (let i = 0; i < count * 2 && chosen.size < count; i++) {
    chosen.add(random.below(own + 1));
  }
  return [...chosen].sort((a, b) => a - b);
}

const rankingShape = fc.record({
  heads,
  keyPerHead: fc.boolean(),
  width,
  rope: fc.option(evenWidth, { nil: undefined }),
  scale: fc.constantFrom(1, 0.5, 4),
  parts: parts(false),
  blocking,
  seed: dataSeed,
});

type RankingShape =
  typeof rankingShape extends fc.Arbitrary<infer T> ? T : never;

function ranking(shape: RankingShape, operator: OperatorName) {
  const { blocking, seed } = shape;
  const sequences = layOutParts(shape.parts, blocking);
  const isLong = sequences.maxKeys >= 500;
  const { heads, groups } = isLong ? { heads: 1, groups: 1 } : shape.heads;
  const rope = isLong ? undefined : shape.rope;
  const rows = sequences.queryRows;
  const blocks = sequences.blockRows(blocking);
  const { length, stride, sharing, blockSize } = blocking;
  const scale = shape.scale / Math.sqrt(shape.width + (rope ?? 0));
  const names = { q: 'q', k: 'k', v: 'k', qRope: 'qRope', kRope: 'kRope' };
  return {
    operator,
    inputs: {
      q: data(rows, heads, shape.width),
      k: data(blocks, shape.keyPerHead ? heads : groups, shape.width),
      ...(rope && {
        qRope: data(rows, heads, rope),
        kRope: data(blocks, 1, rope),
      }),
    } as Record<string, Input>,
    derived: {
      operator: 'compressedAttention',
      inputs: names,
      outputs: ['lse'],
      attributes: { sequences, scale, length, stride },
    },
    attributes: {
      sequences,
      scale,
      length,
      stride,
      groups,
      blockSize,
      sharing,
    },
    seed,
  } satisfies OperatorCase;
}

export const blockImportanceCases: Cases = rankingShape.map((shape) =>
  ranking(shape, 'blockImportance'),
);

const listShape = fc.record({
  initial: fc.constantFrom(0, 1, 2),
  local: fc.constantFrom(1, 2, 3),
  free: fc.constantFrom(0, 1, 2, 4, 7),
});

const generalSelection: Cases = fc
  .tuple(rankingShape, listShape, fc.boolean())
  .map(([shape, lists, alwaysPrevious]) =>
    selection(ranking(shape, 'selectBlocks'), lists, alwaysPrevious),
  );

/**
 * Scores that are exact in every arithmetic and equal for many blocks: one
 * head a group, blocks that do not overlap, channels of one half.
 */
const tiedSelection: Cases = fc
  .tuple(rankingShape, listShape, fc.constantFrom(1, 2, 4, 8))
  .map(([shape, lists, size]) => {
    const { groups } = shape.heads;
    const sharing =
      size % shape.blocking.sharing === 0 ? shape.blocking.sharing : 1;
    const blocks = { stride: size, length: size, blockSize: size, sharing };
    const call = ranking(
      {
        ...shape,
        heads: { groups, heads: groups },
        rope: undefined,
        width: Math.min(4, shape.width),
        blocking: blocks,
      },
      'selectBlocks',
    );
    const { q, k } = call.inputs;
    const scale = 0.5;
    const chosen = selection(call, lists, false);
    return {
      ...chosen,
      inputs: {
        ...chosen.inputs,
        ...(q && { q: { ...q, fill: halves } }),
        ...(k && { k: { ...k, fill: halves } }),
      },
      attributes: { ...call.attributes, ...listAttributes(lists), scale },
      derived: {
        ...call.derived,
        attributes: { ...call.derived.attributes, scale },
      },
      exactTies: true,
    };
  });

export const selectBlocksCases: Cases = fc.oneof(
  { weight: 3, arbitrary: generalSelection },
  { weight: 1, arbitrary: tiedSelection },
);

type Lists = typeof listShape extends fc.Arbitrary<infer T> ? T : never;

const listAttributes = ({ initial, local, free }: Lists) => ({
  count: initial + local + free,
  initial,
  local,
});

function selection(
  call: ReturnType<typeof ranking>,
  lists: Lists,
  alwaysPrevious: boolean,
): OperatorCase {
  const { sequences, groups, sharing, blockSize } = call.attributes;
  const attributes = { ...call.attributes, ...listAttributes(lists) };
  const needed = sequences.list.some(
    (s) => (s.keyCount - s.queryCount) % sharing !== 0,
  );
  if (!needed && !alwaysPrevious) return { ...call, attributes };
  const { count } = attributes;
  const previous: Input = {
    shape: [sequences.count, groups, count],
    role: 'index',
    fill: (random) =>
      sequences.list.flatMap(({ keyCount, queryCount }) => {
        const own = Math.floor((keyCount - queryCount) / blockSize);
        return range(groups).flatMap(() => {
          const list = oneList(random, own, count);
          return range(count).map((i) => list[i] ?? -1);
        });
      }),
  };
  return { ...call, attributes, inputs: { ...call.inputs, previous } };
}

const halves: Input['fill'] = (random, size) =>
  Float64Array.from({ length: size }, () =>
    random.uniform() < 0.5 ? -0.5 : 0.5,
  );

const poolShape = fc.record({
  groups: fc.constantFrom(1, 2, 3),
  width,
  parts: parts(false),
  blocking,
  learned: fc.boolean(),
  tail: fc.constantFrom(0, 0, 1),
  seed: dataSeed,
});

type PoolShape = typeof poolShape extends fc.Arbitrary<infer T> ? T : never;

function pool({ groups, width, parts, blocking, tail }: PoolShape) {
  const sequences = layOutParts(parts, blocking);
  const { length, stride } = blocking;
  const rows = sequences.keyRows + tail;
  return {
    attributes: { sequences, length, stride },
    x: data(rows, groups, width),
    blocks: sequences.blockRows(blocking),
    rows,
  };
}

export const compressCases: Cases = poolShape.map((shape) => {
  const { x, attributes } = pool(shape);
  return {
    operator: 'compress',
    inputs: {
      x,
      ...(shape.learned && { logits: data(shape.groups, attributes.length) }),
    },
    attributes,
    seed: shape.seed,
  };
});

export const compressBackwardCases: Cases = poolShape.map((shape) => {
  const { x, attributes, blocks } = pool(shape);
  const { groups, width, learned, seed } = shape;
  return {
    operator: 'compressBackward',
    inputs: {
      x,
      ...(learned && { logits: data(groups, attributes.length) }),
      dY: data(blocks, groups, width),
    },
    attributes,
    seed,
  };
});

export const unfoldBlocksCases: Cases = poolShape.map((shape) => {
  const { x, attributes } = pool(shape);
  const { groups, width, learned, seed } = shape;
  return {
    operator: 'unfoldBlocks',
    inputs: {
      x,
      ...(learned && { bias: data(groups, attributes.length, width) }),
    },
    attributes,
    seed,
  };
});

export const unfoldBlocksBackwardCases: Cases = poolShape.map((shape) => {
  const { attributes, blocks, rows } = pool(shape);
  const { groups, width, learned, seed } = shape;
  return {
    operator: 'unfoldBlocksBackward',
    inputs: { dY: data(blocks, groups, attributes.length * width) },
    attributes: { ...attributes, keyRows: rows, bias: learned },
    seed,
  };
});

const linearShape = fc.record({
  parts: parts(false),
  heads: fc.constantFrom(1, 2, 3),
  width,
  valueWidth: width,
  bias: fc.boolean(),
  state: fc.boolean(),
  temperature: fc.constantFrom(1, 16),
  chunk: fc.constantFrom(1, 2, 7, 16, 64),
  tail: fc.constantFrom(0, 0, 1),
  seed: dataSeed,
});

type LinearShape = typeof linearShape extends fc.Arbitrary<infer T> ? T : never;

function linearCall({ heads, width, valueWidth, ...shape }: LinearShape) {
  const sequences = layOutParts(shape.parts);
  const rows = sequences.queryRows + shape.tail;
  const { temperature, chunk, seed, bias } = shape;
  return {
    sequences,
    rows,
    inputs: {
      q: data(rows, heads, width),
      k: data(rows, heads, width),
      v: data(rows, heads, valueWidth),
      decay: data(rows, heads),
      ...(bias && { bias: data(heads) }),
    },
    attributes: {
      sequences,
      scale: 1 / Math.sqrt(width),
      temperature,
      chunk,
    },
    seed,
  };
}

export const linearAttentionCases: Cases = linearShape.map((shape) => {
  const { sequences, rows: _, ...call } = linearCall(shape);
  const { heads, width, valueWidth, state } = shape;
  const before = statistic(sequences.count, heads, width, valueWidth);
  return {
    operator: 'linearAttention',
    ...call,
    inputs: { ...call.inputs, ...(state && { state: before }) },
  };
});

export const linearAttentionBackwardCases: Cases = linearShape.map((shape) => {
  const { sequences: _, rows, ...call } = linearCall(shape);
  return {
    operator: 'linearAttentionBackward',
    ...call,
    inputs: { ...call.inputs, dO: data(rows, shape.heads, shape.valueWidth) },
  };
});
