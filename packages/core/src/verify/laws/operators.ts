import fc from 'fast-check';
import { type OperatorName, operators } from '../../ops';
import type { SelectBlocksAttributes } from '../../ops/select-blocks';
import { leaderCount, Sequences } from '../../sequences';
import { sizeOf } from '../../tensor';
import {
  describeCase,
  differentiableCases,
  type OperatorCase,
  operatorCases,
  valuesOfCase,
} from '../arbitraries';
import { type Comparison, compareBits, fine, worst } from '../comparison';
import { referenceOn, runOperator, type ValuesByName } from '../run-operator';
import { compareLists } from '../selection-rule';
import type { Values } from '../values';
import { closeResults, type Law, type LawContext, law, sameRows } from './law';

interface Call {
  readonly call: OperatorCase;
  readonly inputs: ValuesByName;
}

type Judge = (context: LawContext, call: Call) => Promise<Comparison>;

/** A law about one operator's random calls. */
function operatorLaw(
  name: string,
  arbitrary: fc.Arbitrary<OperatorCase>,
  judge: Judge,
): Law {
  return law({
    name,
    arbitrary,
    describe: describeCase,
    judge: async (context, call) => {
      const oracle = referenceOn(context.reference);
      const inputs = await valuesOfCase(call, context.dtype, oracle);
      return judge(context, { call, inputs });
    },
  });
}

/** Runs a case's operator on other inputs or with other attributes. */
function run(
  { backend }: LawContext,
  { call, inputs }: Call,
  changes: { inputs?: ValuesByName; attributes?: object } = {},
): Promise<Record<string, Values>> {
  return runOperator(
    backend,
    call.operator,
    { ...inputs, ...changes.inputs },
    { ...(call.attributes as object), ...changes.attributes },
  );
}

const namesOf = <T extends object>(table: T) =>
  Object.keys(table) as (keyof T & string)[];

/** Same inputs, same backend: the same bits. */
const reproducible: readonly Law[] = namesOf(operators).map((operator) =>
  operatorLaw(
    `${operator}: the same bits twice`,
    operatorCases[operator],
    async (context, call) => {
      const [first, second] = [
        await run(context, call),
        await run(context, call),
      ];
      return worst(
        Object.entries(first).map(([name, values]) =>
          compareBits(name, second[name] ?? empty, values),
        ),
      );
    },
  ),
);

const causal = [
  'attention',
  'compressedAttention',
  'selectedAttention',
  'linearAttention',
  'blockImportance',
  'selectBlocks',
] as const satisfies readonly OperatorName[];

/** Changing the tokens from t on changes nothing before t. */
const causality: readonly Law[] = causal.map((operator) =>
  law({
    name: `${operator}: causality`,
    arbitrary: fc.tuple(
      operatorCases[operator],
      fc.double({ min: 0, max: 1, noNaN: true }),
    ),
    describe: ([call, share], dtype) =>
      `changed from ${share} of each sequence on, ${describeCase(call, dtype)}`,
    judge: async (context, [call, share]) => {
      const oracle = referenceOn(context.reference);
      const inputs = await valuesOfCase(call, context.dtype, oracle);
      const future = futureRows(call, inputs, share);
      const changed = Object.fromEntries(
        Object.entries(inputs).map(([name, values]) => [
          name,
          negateRows(values, future[axisOf(operator, name)]),
        ]),
      );
      const before = await run(context, { call, inputs });
      const after = await run(context, { call, inputs: changed });
      return worst(
        Object.entries(before).flatMap(([name, values]) => {
          const rows = future[outputAxis(operator, name)];
          const got = after[name];
          if (!rows || !got) return [];
          return [
            compareBits(
              name,
              withoutRows(got, rows),
              withoutRows(values, rows),
            ),
          ];
        }),
      );
    },
  }),
);

type Axis = 'query' | 'key' | 'block' | 'leader' | 'other';
type Future = Readonly<Partial<Record<Axis, ReadonlySet<number>>>>;

function axisOf(operator: OperatorName, name: string): Axis {
  if (/^(q|qRope|lse)$/.test(name)) return 'query';
  if (operator === 'linearAttention') {
    return /^(k|v|decay)$/.test(name) ? 'query' : 'other';
  }
  if (!/^(k|v|kRope)$/.test(name)) return 'other';
  const isDense = operator === 'attention' || operator === 'selectedAttention';
  return isDense ? 'key' : 'block';
}

function outputAxis(operator: OperatorName, name: string): Axis {
  if (name === 'last') return 'other';
  const isRanking =
    operator === 'blockImportance' || operator === 'selectBlocks';
  return isRanking ? 'leader' : 'query';
}

/** Rows of each axis that hold, or depend on, positions from t on. */
function futureRows(
  { attributes }: OperatorCase,
  inputs: ValuesByName,
  share: number,
): Future {
  const {
    sequences,
    length,
    stride,
    sharing = 1,
  } = attributes as SelectBlocksAttributes;
  const query = new Set<number>();
  const key = new Set<number>();
  const block = new Set<number>();
  const leader = new Set<number>();
  for (const s of sequences.list) {
    const first = s.keyCount - s.queryCount;
    const t = first + Math.floor(share * s.queryCount);
    for (let j = t; j < s.keyCount; j++) {
      key.add(s.keyStart + j);
      query.add(s.queryStart + j - first);
    }
    const leaders = leaderCount(first, s.queryCount, sharing);
    for (let row = 0; row < leaders; row++) {
      const position = (Math.floor(first / sharing) + row) * sharing;
      if (position >= t) leader.add(s.leaderStart + row);
    }
    const blocks = (inputs.k?.shape[0] ?? 0) - s.blockStart;
    for (let b = 0; length && b < blocks; b++) {
      const end = b * stride + length - 1;
      if (end >= t && end < s.keyCount) block.add(s.blockStart + b);
    }
  }
  return { query, key, block, leader };
}

function negateRows(
  values: Values,
  rows: ReadonlySet<number> | undefined,
): Values {
  if (!rows || values.dtype === 'i32') return values;
  const width = sizeOf(values.shape.slice(1));
  return {
    ...values,
    data: Float64Array.from(values.data, (value, i) =>
      rows.has(Math.floor(i / width)) ? 3 - value : value,
    ),
  };
}

function withoutRows(values: Values, rows: ReadonlySet<number>): Values {
  const width = sizeOf(values.shape.slice(1));
  const data = [...values.data].filter(
    (_, i) => !rows.has(Math.floor(i / width)),
  );
  return { ...values, shape: [data.length], data: Float64Array.from(data) };
}

const selfCases = differentiableCases;

/** Every block chosen, the compressed branch's gate shut: full attention. */
const allSelected = operatorLaw(
  'selectedAttention: all blocks and no compressed branch are full attention',
  selfCases.selectedAttention ?? operatorCases.selectedAttention,
  async (context, { call, inputs }) => {
    const { indices: _, ...operands } = inputs;
    const { sequences, scale, blockSize, sharing } = call.attributes as {
      sequences: Sequences;
      scale: number;
      blockSize: number;
      sharing: number;
    };
    const { backend } = context;
    const blocks = Math.max(1, Math.ceil(sequences.maxKeys / blockSize));
    const leaders = sequences.leaderRows(sharing);
    const indices: Values = {
      shape: [leaders, 1, blocks],
      dtype: 'i32',
      data: Int32Array.from({ length: leaders * blocks }, (_, i) => i % blocks),
    };
    const attributes = { sequences, scale };
    const full = await runOperator(backend, 'attention', operands, attributes);
    const selected = await runOperator(
      backend,
      'selectedAttention',
      { ...operands, indices },
      { ...attributes, blockSize, sharing },
    );
    const [o, want] = [selected.o ?? empty, full.o ?? empty];
    const [rows = 0, heads = 0] = o.shape;
    const gates: Values = {
      shape: [rows, heads, 2],
      dtype: context.dtype,
      data: Float64Array.from({ length: rows * heads * 2 }, (_, i) =>
        i % 2 === 0 ? -80 : 80,
      ),
    };
    const sum = await runOperator(
      backend,
      'gatedSum',
      { gates, compressed: o, selected: o },
      {},
    );
    const lse = [selected.lse ?? empty, full.lse ?? empty] as const;
    return worst([
      closeResults(context, 'o', sum.y ?? empty, want),
      closeResults(context, 'lse', ...lse),
    ]);
  },
);

const wideWindow = operatorLaw(
  'attention: a window of all keys is no window',
  operatorCases.attention,
  async (context, call) => {
    const { sequences } = call.call.attributes as { sequences: Sequences };
    const window = Math.max(1, sequences.maxKeys);
    const got = await run(context, call, { attributes: { window } });
    const want = await run(context, call, {
      attributes: { window: undefined },
    });
    return worst([
      sameRows(context, 'o', got.o ?? empty, want.o ?? empty),
      sameRows(context, 'lse', got.lse ?? empty, want.lse ?? empty),
    ]);
  },
);

const attentions = [
  'attention',
  'compressedAttention',
  'selectedAttention',
  'linearAttention',
] as const satisfies readonly OperatorName[];

/** Doubling is exact in every float type: the bits must double too. */
const scaledValues: readonly Law[] = attentions.map((operator) =>
  operatorLaw(
    `${operator}: twice the values give twice the output`,
    operatorCases[operator],
    async (context, call) => {
      const { v, state } = call.inputs;
      if (!v) return fine;
      const got = await run(context, call, {
        inputs: { v: times(v, 2), ...(state && { state: times(state, 2) }) },
      });
      const want = await run(context, call);
      return compareBits('o', got.o ?? empty, times(want.o ?? empty, 2));
    },
  ),
);

const groupedHeads = operatorLaw(
  'attention: heads that share keys are heads with equal keys',
  operatorCases.attention,
  async (context, call) => {
    const { q, k, v } = call.inputs;
    if (!q || !k || !v) return fine;
    const heads = q.shape[1] ?? 1;
    const repeated = repeatHeads(k, heads);
    const got = await run(context, call, {
      inputs: { k: repeated, v: v === k ? repeated : repeatHeads(v, heads) },
    });
    const want = await run(context, call);
    return sameRows(context, 'o', got.o ?? empty, want.o ?? empty);
  },
);

/** A larger LSE makes all importance smaller by one factor. */
const rescaledScores = operatorLaw(
  'selectBlocks: rescaling all scores changes no list',
  operatorCases.selectBlocks,
  async (context, call) => {
    const { lse } = call.inputs;
    if (!lse) return fine;
    const shifted = { ...lse, data: Float64Array.from(lse.data, (x) => x + 4) };
    const { indices } = await run(context, call, { inputs: { lse: shifted } });
    return compareLists(
      call.call,
      call.inputs,
      indices ?? empty,
      context.dtype,
      referenceOn(context.reference),
    );
  },
);

/** Lists do not depend on where a sequence is cut into calls. */
const inheritedLists = law({
  name: 'selectBlocks: a cut at any P mod r gives the lists of one call',
  arbitrary: fc.tuple(
    operatorCases.selectBlocks,
    fc.double({ min: 0, max: 1, noNaN: true }),
  ),
  describe: ([call, share], dtype) =>
    `cut at ${share} of each sequence, ${describeCase(call, dtype)}`,
  judge: async (context, [call, share]) => {
    const oracle = referenceOn(context.reference);
    const inputs = await valuesOfCase(call, context.dtype, oracle);
    const attributes = call.attributes as SelectBlocksAttributes;
    const { sharing, groups, count } = attributes;
    const [early, late] = cut(attributes.sequences, share, sharing);
    const at = (sequences: Sequences, previous?: Values) =>
      run(
        context,
        { call, inputs: previous ? { ...inputs, previous } : inputs },
        { attributes: { sequences } },
      );
    const whole = (await at(attributes.sequences)).indices ?? empty;
    const first = (await at(early)).indices ?? empty;
    const size = groups * count;
    const previous: Values = {
      shape: [late.count, groups, count],
      dtype: 'i32',
      data: Int32Array.from(
        early.list.flatMap(({ leaderStart, queryCount, keyCount }) => {
          const begin = keyCount - queryCount;
          const leaders = leaderCount(begin, queryCount, sharing);
          const end = (leaderStart + leaders) * size;
          return leaders > 0
            ? [...first.data.slice(end - size, end)]
            : Array.from({ length: size }, () => -1);
        }),
      ),
    };
    const second = (await at(late, previous)).indices ?? empty;
    return worst(
      attributes.sequences.list.flatMap((s, i) => {
        const [a, b] = [early.list[i], late.list[i]];
        if (!a || !b) return [];
        const begin = s.keyCount - s.queryCount;
        const rows = (x: Values, start: number, n: number): Values => ({
          shape: [n, groups, count],
          dtype: 'i32',
          data: x.data.slice(start * size, (start + n) * size),
        });
        const n = leaderCount(begin, a.queryCount, sharing);
        const m = leaderCount(begin + a.queryCount, b.queryCount, sharing);
        const offset =
          Math.floor((begin + a.queryCount) / sharing) -
          Math.floor(begin / sharing);
        return [
          compareBits(
            `early lists of sequence ${i}`,
            rows(first, a.leaderStart, n),
            rows(whole, s.leaderStart, n),
          ),
          compareBits(
            `late lists of sequence ${i}`,
            rows(second, b.leaderStart, m),
            rows(whole, s.leaderStart + offset, m),
          ),
        ];
      }),
    );
  },
});

/** Cuts the queries of each sequence in two calls; at least one stays early. */
function cut(
  sequences: Sequences,
  share: number,
  sharing: number,
): [early: Sequences, late: Sequences] {
  let leaderStart = 0;
  const parts = sequences.list.map((s) => {
    const early = Math.min(
      s.queryCount,
      Math.max(1, Math.floor(share * s.queryCount)),
    );
    return { s, early, late: s.queryCount - early };
  });
  const lateList = parts.map(({ s, early, late }) => {
    const start = leaderStart;
    leaderStart += leaderCount(s.keyCount - late, late, sharing);
    return {
      ...s,
      queryStart: s.queryStart + early,
      queryCount: late,
      leaderStart: start,
    };
  });
  const earlyList = parts.map(({ s, early, late }) => ({
    ...s,
    queryCount: early,
    keyCount: s.keyCount - late,
  }));
  return [new Sequences(earlyList), new Sequences(lateList)];
}

const chunkedLinear = operatorLaw(
  'linearAttention: chunked is recurrent',
  operatorCases.linearAttention,
  async (context, call) => {
    const got = await run(context, call);
    const want = await run(context, call, { attributes: { chunk: 1 } });
    return worst([
      closeResults(context, 'o', got.o ?? empty, want.o ?? empty),
      closeResults(context, 'last', got.last ?? empty, want.last ?? empty),
    ]);
  },
);

const biasedDecay = operatorLaw(
  'linearAttention: a bias is part of the decay',
  operatorCases.linearAttention,
  async (context, call) => {
    const { decay, bias } = call.inputs;
    if (!decay || !bias || context.dtype !== 'f64') return fine;
    const summed = {
      ...decay,
      data: Float64Array.from(
        decay.data,
        (x, i) => x + (bias.data[i % bias.data.length] ?? 0),
      ),
    };
    const { bias: _, ...rest } = call.inputs;
    const got = await run(context, call);
    const want = await run(context, {
      ...call,
      inputs: { ...rest, decay: summed },
    });
    return closeResults(context, 'o', got.o ?? empty, want.o ?? empty);
  },
);

const carriedState = operatorLaw(
  'linearAttention: the state carries all of the past',
  operatorCases.linearAttention,
  async (context, call) => {
    const { sequences } = call.call.attributes as { sequences: Sequences };
    const [early, late] = cut(sequences, 0.5, 1);
    const whole = await run(context, call);
    const first = await run(context, call, {
      attributes: { sequences: early },
    });
    const state = first.last ?? empty;
    const second = await run(context, call, {
      inputs: { state },
      attributes: { sequences: late },
    });
    const rowsOf = (x: Values, list: Sequences) => pickRows(x, list);
    return worst([
      closeResults(
        context,
        'early o',
        rowsOf(first.o ?? empty, early),
        rowsOf(whole.o ?? empty, early),
      ),
      closeResults(
        context,
        'late o',
        rowsOf(second.o ?? empty, late),
        rowsOf(whole.o ?? empty, late),
      ),
      closeResults(context, 'last', second.last ?? empty, whole.last ?? empty),
    ]);
  },
);

export const operatorLaws: readonly Law[] = [
  ...causality,
  allSelected,
  wideWindow,
  ...scaledValues,
  groupedHeads,
  rescaledScores,
  inheritedLists,
  chunkedLinear,
  biasedDecay,
  carriedState,
  ...reproducible,
];

const empty: Values = { shape: [0], dtype: 'f64', data: new Float64Array(0) };

function times(values: Values, factor: number): Values {
  return {
    ...values,
    data: Float64Array.from(values.data, (value) => value * factor),
  };
}

/** `[N, G, D]` as `[N, H, D]`, each head of a group the same. */
function repeatHeads(values: Values, heads: number): Values {
  const [rows = 0, groups = 1, width = 0] = values.shape;
  const each = heads / groups;
  const shape = [rows, heads, width];
  const data = Float64Array.from({ length: sizeOf(shape) }, (_, i) => {
    const head = Math.floor(i / width) % heads;
    const row = Math.floor(i / (width * heads));
    const from = (row * groups + Math.floor(head / each)) * width;
    return values.data[from + (i % width)] ?? 0;
  });
  return { ...values, shape, data };
}

function pickRows(values: Values, { list }: Sequences): Values {
  const width = sizeOf(values.shape.slice(1));
  const data = list.flatMap(({ queryStart, queryCount }) => [
    ...values.data.slice(queryStart * width, (queryStart + queryCount) * width),
  ]);
  return { ...values, shape: [data.length], data: Float64Array.from(data) };
}
