/**
 * The fast kernels of attention in 16-bit types, in the shapes that they are
 * for: every cut of rows and keys, each at ends that no tile divides.
 */
import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  type FloatType,
  type OperatorName,
  Random,
  Scope,
  Sequences,
  type Tensor,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { DeviceFacts } from '../../packages/backend-gpu/src/cuda/driver';
import type { RunReference } from '../../packages/core/src/verify/arbitraries/case';
import { judgeCall } from '../../packages/core/src/verify/differential';
import {
  anyOperator,
  referenceOn,
  uploadAll,
  type ValuesByName,
} from '../../packages/core/src/verify/run-operator';
import {
  roundedTo,
  type Values,
  valuesOf,
} from '../../packages/core/src/verify/values';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';

interface Form {
  readonly heads: number;
  readonly groups: number;
  /** Lists of a leader; as many as groups. */
  readonly lists?: number;
  readonly width: number;
  readonly rope?: number;
  /** None: keys and values are one tensor. */
  readonly value?: number;
  readonly counts: readonly { queries: number; keys?: number }[];
  readonly window?: number;
  readonly length?: number;
  readonly stride?: number;
  readonly blockSize?: number;
  readonly sharing?: number;
  readonly count?: number;
  /** Lists also have -1 before their end. */
  readonly holes?: boolean;
  /** Some lists have none but -1. */
  readonly empty?: boolean;
  /** Most lists have the block before their own, too. */
  readonly near?: boolean;
  /** Rows that belong to no sequence. */
  readonly tail?: number;
  /** What other uses of q have given is added to its gradient. */
  readonly plus?: boolean;
}

const forms: Readonly<Record<string, Form>> = {
  'one group of 16 heads, grouped queries': {
    heads: 16,
    groups: 1,
    width: 64,
    value: 64,
    counts: [{ queries: 5, keys: 133 }, { queries: 37 }],
    tail: 1,
  },
  'NSA: two groups of 16 heads of width 128': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 131 }],
    window: 40,
    length: 32,
    stride: 16,
    blockSize: 64,
    count: 4,
  },
  'ASA: latent keys with rotary columns, four queries a list': {
    heads: 32,
    groups: 2,
    width: 128,
    rope: 64,
    counts: [{ queries: 75 }, { queries: 9, keys: 150 }],
    window: 33,
    sharing: 4,
    count: 5,
  },
  'many heads of their own keys, odd widths': {
    heads: 3,
    groups: 3,
    width: 96,
    rope: 16,
    value: 48,
    counts: [{ queries: 167 }, { queries: 1 }, { queries: 64, keys: 70 }],
    window: 65,
    count: 4,
  },
  'eight heads, two queries a list': {
    heads: 16,
    groups: 2,
    width: 16,
    value: 16,
    counts: [{ queries: 65 }, { queries: 130 }],
    window: 1,
    length: 8,
    stride: 4,
    blockSize: 8,
    sharing: 2,
    count: 6,
  },
  'many blocks to choose from': {
    heads: 20,
    groups: 1,
    width: 16,
    value: 16,
    counts: [{ queries: 9, keys: 1801 }, { queries: 1103 }],
    length: 32,
    blockSize: 16,
    sharing: 8,
    count: 9,
    window: 70,
  },
  'every head its own keys: tiles enough for one walk each': {
    heads: 96,
    groups: 96,
    width: 16,
    value: 16,
    counts: [{ queries: 70 }, { queries: 130 }],
    count: 3,
  },
  'MLA: heads with keys of 192 columns and values of 128': {
    heads: 2,
    groups: 2,
    width: 128,
    rope: 64,
    value: 128,
    counts: [{ queries: 133 }],
    window: 50,
    count: 4,
  },
  'latent keys of 56 + 32 columns, four heads a group, four queries a list': {
    heads: 16,
    groups: 4,
    width: 56,
    rope: 32,
    counts: [{ queries: 75 }, { queries: 9, keys: 150 }],
    window: 33,
    sharing: 4,
    count: 5,
    tail: 1,
  },
  'latent keys of 24 + 8 columns': {
    heads: 32,
    groups: 2,
    width: 24,
    rope: 8,
    counts: [{ queries: 75 }],
    window: 33,
    count: 5,
  },
  'latent keys of 40 columns and none behind them': {
    heads: 6,
    groups: 3,
    width: 40,
    counts: [{ queries: 133 }, { queries: 66 }],
    window: 60,
    sharing: 2,
    count: 4,
  },
  'keys of 72 + 16 columns and values of 56 apart': {
    heads: 16,
    groups: 1,
    width: 72,
    rope: 16,
    value: 56,
    counts: [{ queries: 131 }],
    window: 40,
    length: 32,
    stride: 16,
    blockSize: 64,
    count: 3,
  },
  'eight columns': {
    heads: 2,
    groups: 2,
    width: 8,
    value: 8,
    counts: [{ queries: 70 }, { queries: 3 }],
  },
  'wide keys and values': {
    heads: 4,
    groups: 1,
    width: 192,
    rope: 64,
    value: 256,
    counts: [{ queries: 33, keys: 47 }],
    count: 3,
  },
  'decoding: one query of sequences of very different lengths': {
    heads: 32,
    groups: 2,
    width: 64,
    rope: 16,
    counts: [1, 15, 16, 17, 1030, 2049].map((keys) => ({ queries: 1, keys })),
    window: 700,
    sharing: 4,
    count: 20,
    tail: 2,
  },
  'decoding: latent keys of 56 + 32 columns': {
    heads: 16,
    groups: 4,
    width: 56,
    rope: 32,
    counts: [1, 17, 1030].map((keys) => ({ queries: 1, keys })),
    window: 300,
    sharing: 4,
    count: 20,
  },
  'decoding: three queries a sequence, a list each': {
    heads: 16,
    groups: 1,
    width: 32,
    value: 48,
    counts: [{ queries: 3 }, { queries: 3, keys: 1301 }, { queries: 0 }],
    window: 130,
    length: 32,
    blockSize: 16,
    count: 13,
    tail: 1,
  },
  'decoding: thousands of blocks to choose from': {
    heads: 8,
    groups: 2,
    width: 16,
    counts: [
      { queries: 1, keys: 5001 },
      { queries: 2, keys: 90 },
    ],
    length: 4,
    stride: 2,
    blockSize: 2,
    count: 150,
  },
};

/** Decoding on Hopper, where it is for a kernel of its own. */
const decodeForms: Readonly<Record<string, Form>> = {
  ...Object.fromEntries(
    Object.entries(forms).filter(([name]) =>
      /^decoding: (one|latent)/.test(name),
    ),
  ),
  'NSA: keys and values of their own, lists that end early': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [5, 999, 640].map((keys) => ({ queries: 1, keys })),
    window: 100,
    length: 32,
    stride: 16,
    blockSize: 64,
    count: 6,
    holes: true,
    empty: true,
  },
  'MLA: 32 heads with one latent key of 224 + 32 columns': {
    heads: 32,
    groups: 1,
    width: 224,
    rope: 32,
    counts: [1, 530, 700].map((keys) => ({ queries: 1, keys })),
    window: 512,
    count: 9,
    holes: true,
  },
  'three queries a sequence, every head its own keys, odd widths': {
    heads: 3,
    groups: 3,
    width: 72,
    rope: 24,
    value: 40,
    counts: [
      { queries: 3, keys: 301 },
      { queries: 0, keys: 40 },
      { queries: 2, keys: 95 },
    ],
    window: 130,
    length: 32,
    blockSize: 32,
    sharing: 8,
    count: 3,
    tail: 1,
  },
  'latent keys of 64 columns alone, more lists than key heads, 48 keys a block':
    {
      heads: 32,
      groups: 2,
      lists: 8,
      width: 64,
      counts: [3, 200, 0, 470].map((keys) => ({
        queries: Math.min(keys, 1),
        keys,
      })),
      window: 33,
      length: 8,
      stride: 4,
      blockSize: 48,
      count: 5,
      holes: true,
    },
  'fewer lists than key heads, 64 rows a key head': {
    heads: 128,
    groups: 2,
    lists: 1,
    width: 32,
    value: 24,
    counts: [90, 17].map((keys) => ({ queries: 1, keys })),
    window: 50,
    count: 4,
  },
  'a past that several clusters share out': {
    heads: 8,
    groups: 2,
    width: 16,
    counts: [
      { queries: 1, keys: 2601 },
      { queries: 4, keys: 700 },
    ],
    length: 2,
    stride: 1,
    sharing: 4,
    count: 140,
  },
};
const decodes = Object.keys(decodeForms).flatMap((name) =>
  (
    [
      ['bf16', 132],
      ['bf16', 8],
      ...(/^NSA/.test(name) ? ([['f16', 20]] as const) : []),
    ] as const
  ).flatMap(([dtype, multiprocessors]) =>
    (['attention', 'compressedAttention', 'selectedAttention'] as const).map(
      (operator) => [operator, dtype, name, multiprocessors] as const,
    ),
  ),
);

/** Lists in every proportion of their rows to the keys of a block. */
const selections: Readonly<Record<string, Form>> = {
  'ASA: 64 rows a list, blocks of 16 latent keys': {
    heads: 32,
    groups: 2,
    width: 128,
    rope: 64,
    counts: [{ queries: 199 }, { queries: 1 }, { queries: 18 }],
    sharing: 4,
    count: 9,
    holes: true,
    tail: 1,
  },
  'four queries a list, keys and values apart': {
    heads: 16,
    groups: 1,
    width: 64,
    value: 96,
    counts: [{ queries: 131 }, { queries: 34 }],
    sharing: 4,
    blockSize: 32,
    count: 3,
  },
  'NSA: 16 rows a list, blocks of 64 keys': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 150 }, { queries: 1 }, { queries: 66 }],
    blockSize: 64,
    count: 3,
    holes: true,
    tail: 1,
  },
  'two queries a list, blocks of 64 latent keys': {
    heads: 16,
    groups: 1,
    width: 64,
    rope: 32,
    counts: [{ queries: 301 }, { queries: 129 }],
    sharing: 2,
    blockSize: 64,
    count: 3,
  },
  'two tiles a list, two lists a key head': {
    heads: 40,
    groups: 2,
    lists: 4,
    width: 32,
    rope: 32,
    value: 32,
    counts: [{ queries: 77 }],
    sharing: 8,
    count: 4,
  },
};

/** Blocks of 64 keys by lists of 16, 32 and 64 rows, in every width of a part. */
const blockWalks: Readonly<Record<string, Form>> = {
  'four queries of 16 heads a list, keys and values apart': {
    heads: 32,
    groups: 2,
    width: 96,
    value: 64,
    counts: [{ queries: 1 }, { queries: 203 }, { queries: 66 }],
    sharing: 4,
    blockSize: 64,
    count: 3,
    holes: true,
    tail: 2,
  },
  'four queries of 4 heads a list, some of none': {
    heads: 8,
    groups: 2,
    width: 64,
    rope: 64,
    value: 96,
    counts: [{ queries: 571 }, { queries: 0 }, { queries: 65 }],
    sharing: 4,
    blockSize: 64,
    count: 4,
    empty: true,
  },
  '64 heads a list, latent keys of one chunk': {
    heads: 64,
    groups: 1,
    width: 64,
    counts: [{ queries: 131 }],
    blockSize: 64,
    count: 2,
  },
  'rotary columns from the middle of a chunk': {
    heads: 16,
    groups: 1,
    width: 80,
    rope: 48,
    value: 128,
    counts: [{ queries: 70 }, { queries: 129 }],
    blockSize: 64,
    count: 3,
    tail: 1,
  },
};

/** Few rows a list, blocks of 64 keys. */
const unions: Readonly<Record<string, Form>> = {
  'a list a query, some before': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 37, keys: 555 }, { queries: 1 }, { queries: 166 }],
    blockSize: 64,
    count: 4,
    holes: true,
    tail: 1,
  },
  'two queries a list, latent keys': {
    heads: 16,
    groups: 2,
    width: 128,
    rope: 64,
    counts: [{ queries: 75, keys: 301 }, { queries: 9 }],
    sharing: 2,
    blockSize: 64,
    count: 3,
  },
  'twelve rows a list, two lists a key head': {
    heads: 12,
    groups: 1,
    lists: 2,
    width: 48,
    value: 80,
    counts: [{ queries: 131 }],
    sharing: 2,
    blockSize: 64,
    count: 2,
  },
};

/** Few rows a list, and many blocks for each that a list chooses. */
const sparse: Readonly<Record<string, Form>> = {
  'a list a query, some of none': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 150, keys: 2500 }, { queries: 1 }, { queries: 66 }],
    blockSize: 64,
    count: 4,
    holes: true,
    empty: true,
    tail: 1,
  },
  'a list a query, most with the block before their own': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 85, keys: 2700 }, { queries: 1 }, { queries: 190 }],
    blockSize: 64,
    count: 5,
    holes: true,
    near: true,
    tail: 1,
  },
  'two queries a list, latent keys': {
    ...unions['two queries a list, latent keys']!,
    counts: [{ queries: 131, keys: 2174 }, { queries: 9 }],
    count: 4,
    near: true,
  },
  'four queries a list, latent keys of 56 + 32 columns': {
    heads: 16,
    groups: 4,
    width: 56,
    rope: 32,
    counts: [{ queries: 130, keys: 2200 }, { queries: 333 }],
    sharing: 4,
    blockSize: 64,
    count: 4,
    near: true,
    tail: 1,
  },
  'twelve rows a list, two lists a key head': {
    ...unions['twelve rows a list, two lists a key head']!,
    counts: [{ queries: 131, keys: 2125 }],
    count: 3,
  },
};

/** Those of which most lists have the block before their own. */
const nearSparse = Object.fromEntries(
  Object.entries(sparse).filter(([, { near }]) => near),
);

/** The same in widths of every kind of copy, and of rows that are no queries. */
const hopperSparse: Readonly<Record<string, Form>> = {
  ...sparse,
  'eight queries of one head a list, keys of 128 + 64 columns': {
    heads: 2,
    groups: 2,
    width: 128,
    rope: 64,
    value: 128,
    counts: [{ queries: 603, keys: 2001 }, { queries: 0 }, { queries: 7 }],
    sharing: 8,
    blockSize: 64,
    count: 4,
    near: true,
    holes: true,
    tail: 1,
  },
  'two queries of six heads a list, keys of 40 + 16 columns': {
    heads: 12,
    groups: 2,
    width: 40,
    rope: 16,
    value: 24,
    counts: [
      { queries: 201, keys: 1801 },
      { queries: 70, keys: 71 },
    ],
    sharing: 2,
    blockSize: 64,
    count: 3,
    empty: true,
  },
  'one head and one query a list, keys of 8 columns': {
    heads: 4,
    groups: 4,
    width: 8,
    value: 8,
    counts: [{ queries: 160, keys: 1300 }],
    blockSize: 64,
    count: 2,
    tail: 2,
  },
};

/** Few rows a list, and lists that see a large share of the past. */
const masked: Readonly<Record<string, Form>> = {
  'four queries of 4 heads a list, latent keys of 56 + 32 columns': {
    heads: 16,
    groups: 4,
    width: 56,
    rope: 32,
    counts: [
      { queries: 195 },
      { queries: 0 },
      { queries: 66, keys: 331 },
      { queries: 3 },
    ],
    sharing: 4,
    count: 9,
    holes: true,
    tail: 1,
  },
  'a list a query, some of none, blocks of 32 keys': {
    heads: 32,
    groups: 2,
    width: 128,
    value: 128,
    counts: [{ queries: 150 }, { queries: 37, keys: 555 }, { queries: 1 }],
    blockSize: 32,
    count: 6,
    empty: true,
  },
  'two queries of 4 heads a list, blocks of 64 keys, odd widths': {
    heads: 8,
    groups: 2,
    width: 72,
    value: 88,
    counts: [{ queries: 301 }, { queries: 33, keys: 160 }],
    sharing: 2,
    blockSize: 64,
    count: 2,
    tail: 2,
  },
  'eight queries of one head a list, a list for two key heads': {
    heads: 4,
    groups: 4,
    lists: 2,
    width: 64,
    rope: 16,
    value: 64,
    counts: [{ queries: 259 }, { queries: 129, keys: 260 }],
    sharing: 8,
    count: 7,
    holes: true,
    empty: true,
  },
  'two queries of 3 heads a list, two lists a key head, blocks of 48 keys': {
    heads: 12,
    groups: 2,
    lists: 4,
    width: 96,
    rope: 32,
    counts: [{ queries: 131, keys: 300 }, { queries: 90 }],
    sharing: 2,
    blockSize: 48,
    count: 3,
    tail: 1,
  },
  'two queries of one head a list': {
    heads: 2,
    groups: 2,
    width: 64,
    counts: [{ queries: 300 }, { queries: 70 }],
    sharing: 2,
    count: 6,
    empty: true,
  },
  'a query of 4 heads a list, keys of 112 + 16 columns, values apart': {
    heads: 8,
    groups: 2,
    width: 112,
    rope: 16,
    value: 96,
    counts: [{ queries: 203 }, { queries: 5 }, { queries: 130 }],
    count: 8,
    holes: true,
  },
};

/** A form whose first sequence ends within a tile of keys. */
const boxed = 'MLA expanded: 64 columns and 32 rotary ones, values of 64';
/** Sequences may be shorter than its blocks. */
const short: Omit<Form, 'counts'> = {
  heads: 16,
  groups: 1,
  width: 64,
  value: 64,
  length: 32,
  stride: 16,
};
/** What only Hopper's kernels take: more rows than a warpgroup has. */
const hopperForms: Readonly<Record<string, Form>> = {
  ...Object.fromEntries(
    Object.entries(forms).filter(([name]) => /^(NSA|ASA|MLA)/.test(name)),
  ),
  'three heads a group: several tiles of rows and keys': {
    heads: 6,
    groups: 2,
    width: 64,
    value: 64,
    counts: [{ queries: 301 }, { queries: 5 }, { queries: 90, keys: 427 }],
    window: 140,
    length: 4,
    stride: 2,
    tail: 3,
  },
  [boxed]: {
    heads: 4,
    groups: 4,
    width: 64,
    rope: 32,
    value: 64,
    counts: [{ queries: 259 }, { queries: 128, keys: 400 }],
    length: 2,
    stride: 1,
  },
  'widths that are no chunks': {
    heads: 4,
    groups: 2,
    width: 96,
    rope: 48,
    value: 112,
    counts: [{ queries: 257 }, { queries: 0 }, { queries: 65, keys: 300 }],
    window: 200,
    length: 3,
    stride: 1,
  },
  'latent 56 and 32 rotary columns: zeros behind keys': {
    heads: 8,
    groups: 2,
    width: 56,
    rope: 32,
    counts: [{ queries: 259 }, { queries: 33, keys: 330 }],
    length: 2,
    stride: 2,
    tail: 1,
    sharing: 4,
    blockSize: 16,
    count: 4,
  },
  'widths of whole pieces, values apart, six heads a group': {
    heads: 6,
    groups: 1,
    width: 72,
    value: 88,
    counts: [{ queries: 257 }, { queries: 65, keys: 300 }],
    window: 150,
    length: 3,
    stride: 1,
  },
  'many narrow rows: one tile behind another': {
    heads: 16,
    groups: 1,
    width: 80,
    value: 80,
    counts: [{ queries: 70, keys: 700 }],
    window: 340,
    length: 3,
    stride: 1,
    tail: 1,
  },
};

/** Several tiles of keys, of which each adds to the same rows. */
const walkForms: Readonly<Record<string, Form>> = {
  'six tiles of keys, several sequences': {
    heads: 8,
    groups: 1,
    width: 64,
    value: 80,
    counts: [
      { queries: 641 },
      { queries: 0 },
      { queries: 3 },
      { queries: 258 },
    ],
    length: 4,
    stride: 2,
    tail: 2,
  },
  'a window over four of them': {
    heads: 6,
    groups: 2,
    width: 80,
    value: 64,
    counts: [{ queries: 700 }, { queries: 130 }],
    window: 260,
    length: 2,
    stride: 1,
  },
  'latent keys, rotary columns': {
    heads: 8,
    groups: 1,
    width: 80,
    rope: 48,
    counts: [{ queries: 1 }, { queries: 523 }],
    window: 129,
    length: 3,
    stride: 1,
  },
};
/** Few multiprocessors: each walk whole; many: shared out by ranges of rows. */
const walks = Object.keys(walkForms).flatMap((name, i) =>
  (['attentionBackward', 'compressedAttentionBackward'] as const).flatMap(
    (operator) =>
      // How work is cut on a large card one form shows.
      (i === 0 ? [2, 200] : [2]).map(
        (multiprocessors) => ['bf16', operator, name, multiprocessors] as const,
      ),
  ),
);

/** Keys of 128 columns and fewer, where one walk is not for them. */
const passes = (
  ['attentionBackward', 'compressedAttentionBackward'] as const
).flatMap((operator) =>
  Object.keys(hopperForms)
    .filter((name) => /^NSA/.test(name))
    .map((name) => [operator, name] as const),
);

/** A decode step; its longest sequence has room for 1024 keys. */
const grown: Form = {
  heads: 16,
  groups: 1,
  width: 32,
  rope: 16,
  counts: [1, 18, 1001, 740].map((keys) => ({ queries: 1, keys })),
};
const decoding = [
  'attention',
  'compressedAttention',
  'selectedAttention',
  'selectBlocks',
] as const satisfies readonly OperatorName[];

const backwardOf: Partial<Record<OperatorName, OperatorName>> = {
  attentionBackward: 'attention',
  compressedAttentionBackward: 'compressedAttention',
  selectedAttentionBackward: 'selectedAttention',
};
const operators: readonly OperatorName[] = [
  'attention',
  'compressedAttention',
  'selectedAttention',
  'blockImportance',
  'selectBlocks',
  'attentionBackward',
  'compressedAttentionBackward',
  'selectedAttentionBackward',
];
/** The types differ in conversions only, which one form shows. */
const formsOf = {
  bf16: Object.keys(forms),
  f16: Object.keys(forms).filter((name) => /^NSA/.test(name)),
} as const;
const cases = (['bf16', 'f16'] as const).flatMap((dtype) =>
  formsOf[dtype].flatMap((name) =>
    operators.map((operator) => [operator, dtype, name] as const),
  ),
);
/** Kernels of any width share out keys in the same way. */
const wide = Object.keys(forms)
  .filter((name) => name.startsWith('decoding'))
  .flatMap((name) =>
    decoding.map((operator) => [operator, 'f32', name] as const),
  );

const dense = [
  'attention',
  'compressedAttention',
] as const satisfies readonly OperatorName[];
const hopperCases = Object.keys(hopperForms).flatMap((name) =>
  (/^NSA/.test(name) ? (['bf16', 'f16'] as const) : ['bf16' as const]).flatMap(
    (dtype) =>
      (
        [
          ...dense,
          'blockImportance',
          'selectBlocks',
          'attentionBackward',
          'compressedAttentionBackward',
        ] as const
      ).map((operator) => [operator, dtype, name] as const),
  ),
);

/** So little memory that parts of several chunks take the same. */
const fewParts = { multiprocessors: 1, totalBytes: 64 * 1_700_000 };
/** So few multiprocessors that some tiles of rows fill them. */
const oneOfHopper = { capability: 90, multiprocessors: 1, totalBytes: 80e9 };

const twoOfHopper = { capability: 90, multiprocessors: 2 };
/**
 * What writes gradients of queries, where something is added to them: at once,
 * but after a walk that others wait in.
 */
const sums: readonly {
  readonly entry: string;
  readonly of: 'attention' | 'compressedAttention' | 'selectedAttention';
  readonly form: Form | undefined;
  readonly facts?: Partial<DeviceFacts>;
  readonly dtype?: FloatType;
}[] = [
  ...(['attention', 'compressedAttention'] as const).map((of) => ({
    ...{ entry: 'hopperBackward', of, facts: twoOfHopper },
    form: walkForms['six tiles of keys, several sequences'],
  })),
  {
    ...{ entry: 'hopperBackwardQueries', of: 'compressedAttention' },
    ...{ form: { ...short, counts: [{ queries: 20 }, { queries: 139 }] } },
    ...{ facts: twoOfHopper, dtype: 'f16' },
  },
  {
    ...{ entry: 'hopperBackward', of: 'selectedAttention' },
    ...{ form: Object.values(masked)[0], facts: oneOfHopper },
  },
  {
    ...{ entry: 'hopperBackwardQueries', of: 'attention' },
    form: hopperForms['widths that are no chunks'],
    facts: twoOfHopper,
  },
  ...[80, 90].map((capability) => ({
    ...{ entry: 'sumBlockParts', of: 'selectedAttention' as const },
    form: Object.values(blockWalks)[0],
    facts: { capability, totalBytes: 80e9 },
  })),
  {
    ...{ entry: 'flashBackwardLists', of: 'selectedAttention' },
    ...{ form: Object.values(selections)[0], dtype: 'f16' },
  },
  {
    ...{ entry: 'flashBackwardQueries', of: 'selectedAttention' },
    form: forms['latent keys of 40 columns and none behind them'],
  },
  {
    ...{ entry: 'flashBackwardQueries', of: 'attention' },
    form: forms['many heads of their own keys, odd widths'],
  },
  {
    ...{ entry: 'attentionBackwardQueries', of: 'attention', dtype: 'f32' },
    form: forms['one group of 16 heads, grouped queries'],
  },
  {
    ...{ entry: 'attentionBackwardQueries', of: 'compressedAttention' },
    form: forms['wide keys and values'],
  },
];

const selected = [
  'selectedAttention',
  'selectedAttentionBackward',
] as const satisfies readonly OperatorName[];

const reason = whyNoEmulator();

describe.skipIf(reason)(
  `fast attention on emulated CUDA ${reason ?? ''}`,
  () => {
    let backend: Backend;
    let hopper: Backend;
    let reference: Backend;

    beforeAll(async () => {
      backend = await openEmulated({ capability: 80 });
      // So few that no walk is shared out.
      hopper = await openEmulated({ capability: 90, multiprocessors: 2 });
      reference = await openCpu({ poison: true });
    }, 120_000);
    afterAll(async () => {
      await backend.destroy();
      await hopper.destroy();
      await reference.destroy();
    });

    test.for([...cases, ...wide])(
      '%s in %s: %s',
      { timeout: 300_000 },
      ([operator, dtype, name]) =>
        expectAgreement(backend, operator, forms[name] as Form, dtype),
    );

    test.for(hopperCases)(
      'Hopper, %s in %s: %s',
      { timeout: 300_000 },
      ([operator, dtype, name]) =>
        expectAgreement(hopper, operator, hopperForms[name] as Form, dtype),
    );

    test.for(decodes)(
      'decoding on Hopper, %s in %s: %s, on %d multiprocessors',
      { timeout: 300_000 },
      async ([operator, dtype, name, multiprocessors]) => {
        const card = await openEmulated({ capability: 90, multiprocessors });
        const launched = vi.spyOn(card, 'run');
        const form = decodeForms[name] as Form;
        await expectAgreement(card, operator, form, dtype);
        const entries = launched.mock.calls.map(([{ entry }]) => entry);
        expect(entries).toContain('hopperDecode');
        await card.destroy();
      },
    );

    test.for(
      (
        ['attention', 'compressedAttention', 'selectedAttention'] as const
      ).flatMap((operator) =>
        [undefined, 48].map((value) => [operator, value] as const),
      ),
    )(
      'decoding on Hopper, %s, values of %s columns: nothing behind a sequence matters',
      async ([operator, value]) => {
        const form: Form = {
          ...{ heads: 16, groups: 1, width: 64, rope: 16, value, count: 2 },
          counts: [
            { queries: 1, keys: 21 },
            { queries: 1, keys: 40 },
          ],
          ...{ length: 2, stride: 2 },
        };
        const call = await callOf(operator, form, 'bf16', reference);
        const { k, v, kRope } = call.inputs as Record<string, Values>;
        if (!k || !v || !kRope) throw new Error('a rotary form');
        const there = operator === 'compressedAttention' ? 10 : 21;
        const spoilt = (of: Values) =>
          withRows(of, Number.NaN, (row) => row >= there);
        // One tensor where they are one.
        const keys = spoilt(k);
        const facts = { capability: 90, multiprocessors: 132 };
        const results = await resultsOf(facts, operator, 'o', call, [
          {},
          { k: keys, v: v === k ? keys : spoilt(v), kRope: spoilt(kRope) },
        ]);
        const [plain, beside] = results.map((x) =>
          x.slice(0, form.heads * (value ?? form.width)),
        );
        expect(v === k).toBe(value === undefined);
        expect(plain?.every((x) => x !== 0)).toBe(true);
        expect(beside).toEqual(plain);
      },
    );

    test.for(passes)(
      'gradients in two passes: %s, %s',
      { timeout: 300_000 },
      async ([operator, name]) => {
        // Too little memory for sums of dQ.
        const facts = { capability: 90, multiprocessors: 2, totalBytes: 1e6 };
        const card = await openEmulated(facts);
        const form = hopperForms[name] as Form;
        await expectAgreement(card, operator, form, 'bf16');
        await card.destroy();
      },
    );

    test.for(walks)(
      'gradients in one walk in %s: %s, %s, on %d multiprocessors',
      { timeout: 300_000 },
      async ([dtype, operator, name, multiprocessors]) => {
        const card = await openEmulated({ capability: 90, multiprocessors });
        const form = walkForms[name] as Form;
        await expectAgreement(card, operator, form, dtype);
        await card.destroy();
      },
    );

    test.for([
      ...Object.keys(selections).flatMap((name) =>
        (/^(NSA|ASA)/.test(name) ? [0.5, 80] : [0.5]).map(
          (gigabytes) => ['bf16', name, gigabytes] as const,
        ),
      ),
      ...Object.keys(selections)
        .filter((name) => /^NSA/.test(name))
        .map((name) => ['f16', name, 80] as const),
    ])(
      // On a small card some leaders at a time.
      'gradients of selected attention in %s: %s, on a card of %d GB',
      { timeout: 300_000 },
      async ([dtype, name, gigabytes]) => {
        const totalBytes = gigabytes * 1e9;
        const small = await openEmulated({ totalBytes });
        const form = selections[name] as Form;
        await expectAgreement(small, 'selectedAttentionBackward', form, dtype);
        await small.destroy();
      },
    );

    test.for([
      ...Object.keys(blockWalks).map((name) => ['bf16', name, 90] as const),
      ['f16', Object.keys(blockWalks)[0] ?? '', 90] as const,
      ...Object.entries(selections)
        .filter(([_, { blockSize }]) => blockSize === 64)
        .map(([name]) => ['bf16', name, 80] as const),
    ])(
      'gradients by blocks in %s: %s, on sm_%d',
      { timeout: 300_000 },
      async ([dtype, name, capability]) => {
        const card = await openEmulated({ capability, totalBytes: 80e9 });
        const form = { ...selections, ...blockWalks }[name] as Form;
        await expectAgreement(card, 'selectedAttentionBackward', form, dtype);
        await card.destroy();
      },
    );

    test.for([
      ...Object.keys(unions).map((name) => ['bf16', name] as const),
      ['f16', 'a list a query, some before'] as const,
    ])('unions of lists in %s: %s', async ([dtype, name]) => {
      // So few that these walks fill the card.
      const small = await openEmulated({ multiprocessors: 1 });
      const form = unions[name] as Form;
      await expectAgreement(small, 'selectedAttention', form, dtype);
      await small.destroy();
    });

    test.for([
      ...Object.keys(hopperSparse).flatMap((name) =>
        (name in sparse ? [80, 90] : [90]).map(
          (capability) => [capability, 'bf16', name, 1] as const,
        ),
      ),
      [80, 'f16', 'a list a query, some of none', 1] as const,
      [90, 'f16', 'a list a query, some of none', 2] as const,
    ])(
      'lists by their blocks, capability %d, in %s: %s, on %d multiprocessors',
      async ([capability, dtype, name, multiprocessors]) => {
        const facts = { ...fewParts, capability, multiprocessors };
        const small = await openEmulated(facts);
        const launched = vi.spyOn(small, 'run');
        const form = hopperSparse[name] as Form;
        await expectAgreement(small, 'selectedAttention', form, dtype);
        const entries = launched.mock.calls.map(([{ entry }]) => entry);
        expect(entries).toContain('joinLists');
        await small.destroy();
      },
    );

    test.for([
      ...Object.keys(masked).flatMap((name) =>
        selected.map((operator) => [operator, 'bf16', name] as const),
      ),
      ...selected.map(
        (operator) =>
          [operator, 'f16', Object.keys(masked)[0] as string] as const,
      ),
    ])(
      'masks of lists: %s in %s: %s',
      { timeout: 300_000 },
      async ([operator, dtype, name]) => {
        const small = await openEmulated(oneOfHopper);
        const launched = vi.spyOn(small, 'run');
        const form = masked[name] as Form;
        await expectAgreement(small, operator, form, dtype);
        const entries = launched.mock.calls.map(([{ entry }]) => entry);
        // Backward, no lane has a list of three heads' rows.
        const isOdd = operator !== 'selectedAttention' && / 3 heads/.test(name);
        expect(entries.includes('listMasks')).toBe(!isOdd);
        await small.destroy();
      },
    );

    test.for(sums)(
      'added to dQ, by $entry, of $of, %#',
      { timeout: 300_000 },
      async ({ entry, of, form, facts = {}, dtype = 'bf16' }) => {
        const card = await openEmulated(facts);
        const launched = vi.spyOn(card, 'run');
        const sum = { ...(form as Form), plus: true };
        await expectAgreement(card, `${of}Backward`, sum, dtype);
        const entries = launched.mock.calls.map(([{ entry }]) => entry);
        expect(entries).toContain(entry);
        const adds = entries.filter((entry) => entry === 'add');
        expect(adds).toHaveLength(entry === 'hopperBackward' ? 1 : 0);
        await card.destroy();
      },
    );

    test.for(Object.keys(nearSparse))(
      'lists with the block before their own: %s',
      async (name) => {
        const form = nearSparse[name] as Form;
        const args = ['selectedAttention', form, 'bf16', reference] as const;
        const { inputs } = await callOf(...args);
        const { data } = inputs.indices as Values;
        const count = form.count ?? 0;
        const lists = Array.from({ length: data.length / count }, (_, i) =>
          Array.from(data.slice(i * count, (i + 1) * count)),
        );
        const isNear = (list: readonly number[]) =>
          list[0] === 0 && list.at(-1) === (list.at(-2) ?? 0) + 1;
        expect(lists.some(isNear)).toBe(true);
        expect(lists.every(isNear)).toBe(false);
      },
    );

    test.for([
      ['selectedAttention', 'o', sparse, { ...fewParts, capability: 80 }],
      ['selectedAttention', 'o', sparse, { ...fewParts, capability: 90 }],
      ['selectedAttention', 'o', nearSparse, { ...fewParts, capability: 90 }],
      ['selectedAttention', 'o', masked, oneOfHopper],
      ['selectedAttentionBackward', 'dQ', masked, oneOfHopper],
    ] as const)(
      'lists of neighbours change no bit: %s, %s, %#',
      { timeout: 300_000 },
      async ([operator, result, forms, facts]) => {
        const form = Object.values<Form>(forms)[0] as Form;
        const call = await callOf(operator, form, 'bf16', reference);
        const lists = call.inputs.indices as Values;
        const row = (form.count ?? 0) * form.groups;
        const isKept = (leader: number) => leader % 3 === 0;
        const others = Int32Array.from(lists.data as Int32Array, (block, i) =>
          isKept(Math.floor(i / row)) ? block : -1,
        );
        const results = await resultsOf(facts, operator, result, call, [
          {},
          { indices: { ...lists, data: others } },
        ]);
        const leaders = leadersOf(call, form);
        const [all, few] = results.map((x) => {
          const width = x.length / leaders.length;
          return x.filter((_, i) =>
            isKept(leaders[Math.floor(i / width)] ?? 1),
          );
        });
        expect(all?.some((x) => x !== 0)).toBe(true);
        expect(few).toEqual(all);
      },
    );

    test.for([
      ['selectedAttention', 'o', Number.NaN],
      // Its gradient is a sum of such keys times 0.
      ['selectedAttentionBackward', 'dQ', 1e30],
    ] as const)(
      'masks of lists: what no list has changes no bit of %s',
      { timeout: 300_000 },
      async ([operator, result, rotary]) => {
        const form = Object.values(masked)[0] as Form;
        const call = await callOf(operator, form, 'bf16', reference);
        const { k, kRope, indices } = call.inputs as Record<string, Values>;
        if (!k || !kRope || !indices) throw new Error('a rotary form');
        // Keys 16 .. 31 of the first sequence.
        const hidden = (of: Values, x: number) =>
          withRows(of, x, (row) => row >= 16 && row < 32);
        const large = hidden(k, 1e30);
        const lists = {
          ...indices,
          data: Int32Array.from(indices.data, (b) => (b === 1 ? -1 : b)),
        };
        const [plain, huge] = await resultsOf(
          oneOfHopper,
          operator,
          result,
          call,
          [
            { indices: lists },
            {
              indices: lists,
              ...{ k: large, v: large, kRope: hidden(kRope, rotary) },
            },
          ],
        );
        expect(plain?.some((x) => x !== 0)).toBe(true);
        expect(huge).toEqual(plain);
      },
    );

    test('no block is complete: outputs are 0', { timeout: 300_000 }, () => {
      const form = { ...short, counts: [{ queries: 20 }, { queries: 9 }] };
      return expectAgreement(hopper, 'compressedAttention', form, 'bf16');
    });

    test('whole tiles are copied as they lie, and have no other sequence', {
      timeout: 300_000,
    }, async () => {
      const form = hopperForms[boxed] as Form;
      const [first] = form.counts;
      const call = await callOf('attention', form, 'bf16', reference);
      const { k, v, kRope } = call.inputs as Record<string, Values>;
      if (!k || !v || !kRope || !first) throw new Error('a rotary form');
      // All keys but those of the first sequence.
      const spoilt = (of: Values) =>
        withRows(of, Number.NaN, (row) => row >= first.queries);
      const results = await resultsOf(oneOfHopper, 'attention', 'o', call, [
        {},
        { k: spoilt(k), v: spoilt(v), kRope: spoilt(kRope) },
      ]);
      const [plain, beside] = results.map((x) =>
        x.slice(0, first.queries * form.heads * (form.value ?? 0)),
      );
      expect(plain?.every((x) => x !== 0)).toBe(true);
      expect(beside).toEqual(plain);
    });

    /** A result of a call with some of its inputs changed. */
    async function resultsOf(
      facts: Partial<DeviceFacts>,
      operator: OperatorName,
      result: string,
      { inputs, attributes }: Awaited<ReturnType<typeof callOf>>,
      changes: readonly ValuesByName[],
    ): Promise<number[][]> {
      const card = await openEmulated(facts);
      const scope = new Scope(card);
      const results = await Promise.all(
        changes.map(async (changed) => {
          const tensors = uploadAll(scope, { ...inputs, ...changed });
          const made = scope.run(anyOperator(operator), tensors, attributes);
          return Array.from(await scope.read(made[result] as Tensor));
        }),
      );
      scope.free();
      await card.destroy();
      return results;
    }

    async function expectAgreement(
      backend: Backend,
      operator: OperatorName,
      form: Form,
      dtype: FloatType,
    ) {
      const { inputs, attributes } = await callOf(
        operator,
        form,
        dtype,
        reference,
      );
      const call = { operator, attributes, inputs: {} };
      const judged = await judgeCall(
        { backend, reference },
        call,
        inputs,
        dtype,
        oracleOf(form, dtype, reference),
      );
      expect(judged).toMatchObject({ percent: expect.any(Number) });
      expect(judged).not.toHaveProperty('detail');
    }

    test.for(
      ([80, 90] as const).flatMap((capability) =>
        (['bf16', 'f32'] as const).flatMap((dtype) =>
          decoding.map((operator) => [operator, dtype, capability] as const),
        ),
      ),
    )(
      '%s in %s: a recording gives at later lengths what a fresh call does, capability %d',
      async ([operator, dtype, capability]) => {
        const card = await openEmulated({ capability });
        const scope = new Scope(card);
        const form = { ...grown, count: 4 };
        const call = await callOf(operator, form, dtype, reference);
        const { sequences, ...rest } = call.attributes as {
          sequences: Sequences;
        };
        const tensors = uploadAll(scope, call.inputs);
        const run = (at: Sequences) =>
          scope.run(anyOperator(operator), tensors, { sequences: at, ...rest });
        const moving = new Sequences(
          sequences.list.map((s) => ({
            ...s,
            keyCount: s.keyCount - Math.min(210, s.keyCount >> 1),
          })),
        );
        expect(moving.keyRoom).toBe(sequences.keyRoom);
        const results: ReturnType<typeof run>[] = [];
        const recording = card.record?.(() => results.push(run(moving)));
        moving.assign(sequences);
        expect(recording?.replay()).toBe(true);
        results.push(run(sequences));
        const [got, want] = await Promise.all(
          results.map(async (tensors) => {
            const tensor = tensors.o ?? tensors.indices;
            return tensor && (await scope.read(tensor));
          }),
        );
        expect(got).toBeDefined();
        expect(got).toEqual(want);
        for (const made of [moving, sequences, scope, recording]) made?.free();
        await card.destroy();
      },
    );
  },
);

/** Values with x in some rows of the first axis. */
function withRows(
  of: Values,
  x: number,
  isRow: (row: number) => boolean,
): Values {
  const width = of.data.length / (of.shape[0] ?? 1);
  const data = Float64Array.from(of.data, (was, i) =>
    isRow(Math.floor(i / width)) ? x : was,
  );
  return { ...of, data };
}

/** The same numbers for every call, drawn and rounded once. */
const normals: Partial<Record<FloatType, Float64Array>> = {};
function normal(dtype: FloatType, count: number): Float64Array {
  const known = normals[dtype];
  if (known && known.length >= count) return known;
  const random = Random.fromSeed(7);
  const values = new Float64Array(2 * count).map(() => random.normal());
  const rounded = roundedTo(values, dtype);
  normals[dtype] = rounded;
  return rounded;
}

/**
 * What an operator of a form wants, computed once for all the tests of the form
 * that stand together: gradients want what forward passes do, and cards the
 * same. What the form and the type do not say of a call, its sequences do.
 */
let latest: { form: Form; dtype: FloatType; oracle: RunReference } | undefined;
function oracleOf(
  form: Form,
  dtype: FloatType,
  reference: Backend,
): RunReference {
  if (latest?.form === form && latest.dtype === dtype) return latest.oracle;
  const known = new Map<string, ReturnType<RunReference>>();
  const oracle: RunReference = (operator, inputs, attributes) => {
    const { sequences } = attributes as { sequences: Sequences };
    const key = `${operator} ${JSON.stringify(sequences.list)}`;
    const results =
      known.get(key) ?? referenceOn(reference)(operator, inputs, attributes);
    known.set(key, results);
    return results;
  };
  latest = { form, dtype, oracle };
  return oracle;
}

async function callOf(
  operator: OperatorName,
  form: Form,
  dtype: FloatType,
  reference: Backend,
): Promise<{ inputs: ValuesByName; attributes: unknown }> {
  const { length = 16, stride = 16, blockSize = 16, sharing = 1 } = form;
  let drawn = 0;
  const data = (...shape: number[]): Values => {
    const start = drawn;
    drawn += shape.reduce((n, d) => n * d, 1);
    return { shape, dtype, data: normal(dtype, drawn).slice(start, drawn) };
  };
  const blocking = { length, stride, sharing };
  const base = backwardOf[operator] ?? operator;
  // A gradient is of sequences in which every query has its key.
  const counts =
    base === operator
      ? form.counts
      : form.counts.map(({ queries }) => ({ queries }));
  const sequences = Sequences.packed(counts, blocking);
  const isSelf = base === 'attention' || base === 'selectedAttention';
  const { tail = 0, heads, groups, width, rope } = form;
  const queries = sequences.queryRows + tail;
  const keys =
    (isSelf ? sequences.keyRows : sequences.blockRows(blocking)) + tail;
  const q = data(queries, heads, width);
  const k = data(keys, groups, width);
  const inputs: Record<string, Values> = {
    q,
    k,
    v: form.value ? data(keys, groups, form.value) : k,
    ...(rope && {
      qRope: data(queries, heads, rope),
      kRope: data(keys, 1, rope),
    }),
  };
  const scale = 1.5 / Math.sqrt(width + (rope ?? 0));
  const oracle = oracleOf(form, dtype, reference);
  const pooled = { sequences, scale, length, stride };
  if (base === 'attention') {
    const attributes = { sequences, scale, window: form.window };
    return withGradient(operator, base, inputs, attributes);
  }
  if (base === 'compressedAttention') {
    return withGradient(operator, base, inputs, pooled);
  }
  const { count = 4 } = form;
  if (base === 'selectedAttention') {
    const lists = listsOf(sequences, {
      ...{ ...form, groups: form.lists ?? groups },
      ...{ count, blockSize, sharing },
    });
    const attributes = { sequences, scale, blockSize, sharing };
    return withGradient(
      operator,
      base,
      { ...inputs, indices: lists },
      attributes,
    );
  }
  const { lse } = await oracle('compressedAttention', inputs, pooled);
  const { v: _, ...ranked } = inputs;
  const ranking = { ...pooled, groups, blockSize, sharing };
  const known = valuesOf([queries, heads], lse?.data as Float64Array, 'f32');
  if (operator === 'blockImportance') {
    return { inputs: { ...ranked, lse: known }, attributes: ranking };
  }
  const previous = listsOf(sequences, { ...form, count, blockSize, sharing });
  const first = {
    shape: [sequences.count, groups, count],
    dtype: 'i32' as const,
    data: previous.data.slice(
      0,
      sequences.count * groups * count,
    ) as Int32Array,
  };
  return {
    inputs: { ...ranked, lse: known, previous: first },
    attributes: { ...ranking, count, initial: 1, local: 2 },
  };

  async function withGradient(
    operator: OperatorName,
    base: OperatorName,
    inputs: ValuesByName,
    attributes: unknown,
  ) {
    if (operator === base) return { inputs, attributes };
    const { o, lse } = await oracle(base, inputs, attributes);
    const size = [queries, heads, form.value ?? width];
    const all = {
      ...inputs,
      o: valuesOf(size, o?.data as Float64Array, dtype),
      lse: valuesOf([queries, heads], lse?.data as Float64Array, 'f32'),
      dO: data(...size),
      ...(form.plus && { plus: data(queries, heads, width) }),
    };
    return { inputs: all, attributes };
  }
}

/** Of each row of the query axis its row of the leader axis. */
function leadersOf(
  { inputs, attributes }: Awaited<ReturnType<typeof callOf>>,
  { sharing = 1 }: Form,
): number[] {
  const { sequences } = attributes as { sequences: Sequences };
  const leaders = new Array<number>(inputs.q?.shape[0] ?? 0).fill(-1);
  for (const s of sequences.list) {
    const past = s.keyCount - s.queryCount;
    for (let i = 0; i < s.queryCount; i++) {
      leaders[s.queryStart + i] =
        s.leaderStart +
        Math.floor((past + i) / sharing) -
        Math.floor(past / sharing);
    }
  }
  return leaders;
}

/** Each leader's own block and some before it, ascending, then -1. */
function listsOf(
  sequences: Sequences,
  {
    groups,
    count,
    blockSize,
    sharing,
    holes,
    empty,
    near,
  }: Form & Required<Pick<Form, 'count' | 'blockSize' | 'sharing'>>,
): Values {
  const random = Random.fromSeed(11);
  const shape = [sequences.leaderRows(sharing), groups, count];
  const data = new Int32Array(shape.reduce((n, d) => n * d, 1)).fill(-1);
  for (const { leaderStart, queryCount, keyCount } of sequences.list) {
    const first = keyCount - queryCount;
    for (let t = first; t < keyCount; t++) {
      const leader = Math.floor(t / sharing) - Math.floor(first / sharing);
      const own = Math.floor(t / blockSize);
      for (let g = 0; g < groups; g++) {
        const chosen = new Set([own, 0]);
        if (near && own > 0 && leader % 5 > 0) chosen.add(own - 1);
        while (chosen.size < Math.min(count, own + 1)) {
          chosen.add(Math.floor(random.uniform() * own));
        }
        const list = [...chosen]
          .sort((a, b) => a - b)
          .map((b, i) => (holes && b !== own && (b + i) % 4 === 1 ? -1 : b));
        data.fill(
          -1,
          ((leaderStart + leader) * groups + g) * count,
          ((leaderStart + leader) * groups + g + 1) * count,
        );
        if (empty && leader % 7 === 3) continue;
        data.set(list, ((leaderStart + leader) * groups + g) * count);
      }
    }
  }
  return { shape, dtype: 'i32', data };
}
