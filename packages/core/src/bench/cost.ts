import { bytesPerElement } from '../dtype';
import type { OperatorName } from '../ops';
import { blockCount, type Sequences } from '../sequences';
import { sizeOf, type TensorSpec } from '../tensor';

/** What a call has to do, whatever the kernel. */
export interface Cost {
  /**
   * Floating-point operations of the matrix products: two for a multiplication
   * and its addition, for visible pairs only. Norms, softmax, rotations and the
   * like are not counted.
   */
  readonly flops: number;
  /** Bytes that must move: each operand read once, each result written once. */
  readonly bytes: number;
}

/** One call, by the shapes of its operands and results. */
export interface CostedCall {
  readonly inputs: Readonly<Record<string, TensorSpec | undefined>>;
  readonly outputs: Readonly<Record<string, TensorSpec | undefined>>;
  readonly attributes: unknown;
}

/**
 * The cost of one operator. An operator without an entry of its own has no
 * matrix product and moves all of its operands and results.
 */
export function costOf(operator: OperatorName, call: CostedCall): Cost {
  return table[operator]?.(call) ?? { flops: 0, bytes: allBytes(call) };
}

export const noCost: Cost = { flops: 0, bytes: 0 };

export function addCosts(a: Cost, b: Cost): Cost {
  return { flops: a.flops + b.flops, bytes: a.bytes + b.bytes };
}

type Formula = (call: CostedCall) => Cost;

const table: Readonly<Partial<Record<OperatorName, Formula>>> = {
  /** `2 M N K` */
  matmul: (call) => {
    const { a } = call.inputs;
    const { transposeA = false } = call.attributes as { transposeA?: boolean };
    const columns = Math.max(1, last(a));
    const inner = transposeA ? size(a) / columns : last(a);
    return { flops: 2 * size(call.outputs.y) * inner, bytes: allBytes(call) };
  },
  /** `2 N H M K`: every head reads the row of its group. */
  headMatmul: (call) => headProduct(call, call.outputs.y, call.inputs.w),
  headMatmulBackwardInput: (call) =>
    headProduct(call, call.inputs.dy, call.inputs.w),
  headMatmulBackwardWeight: (call) =>
    headProduct(call, call.inputs.dy, call.outputs.dw),

  attention: (call) => attentionCost(call, plainView(call), forward),
  attentionBackward: (call) => attentionCost(call, plainView(call), backward),
  compressedAttention: (call) =>
    attentionCost(call, compressedView(call), forward),
  compressedAttentionBackward: (call) =>
    attentionCost(call, compressedView(call), backward),
  selectedAttention: (call) => attentionCost(call, selectedView(call), forward),
  selectedAttentionBackward: (call) =>
    attentionCost(call, selectedView(call), backward),
  // Scores alone, and of the leaders alone.
  blockImportance: (call) => attentionCost(call, leadersView(call), scores),
  selectBlocks: (call) => attentionCost(call, leadersView(call), scores),

  // A state `[Dk, Dv]` a head: decay 1, update 2, reading it 2, gates 1.
  linearAttention: (call) => ({
    flops: 6 * stateElements(call),
    bytes: allBytes(call),
  }),
  // The state and its gradient (3 each), and what is read of both (6).
  linearAttentionBackward: (call) => ({
    flops: 12 * stateElements(call),
    bytes: allBytes(call),
  }),

  /** Only the rows that are gathered are read. */
  gatherRows: ({ inputs, outputs }) => ({
    flops: 0,
    bytes: bytes(inputs.rows) + 2 * bytes(outputs.y),
  }),
  /** Only the rows that come are written. */
  scatterRows: ({ inputs }) => ({
    flops: 0,
    bytes: bytes(inputs.rows) + 2 * bytes(inputs.x),
  }),
};

/** What the queries of a call see. */
interface View {
  /** Visible (query, key) pairs of one head. */
  readonly pairs: number;
  /** Query rows and key rows that are read at all. */
  readonly queries: number;
  readonly keys: number;
}

interface Widths {
  /** `Dk + dR` */
  readonly key: number;
  /** `Dv` */
  readonly value: number;
}

/** FLOPs of one pair: `q . k`, `p v`. */
const forward = ({ key, value }: Widths) => 2 * (key + value);
/** `q . k` again, `dO . v`, and the sums of dQ, dK and dV. */
const backward = ({ key, value }: Widths) => 2 * (3 * key + 2 * value);
const scores = ({ key }: Widths) => 2 * key;

function attentionCost(
  { inputs, outputs }: CostedCall,
  { pairs, queries, keys }: View,
  flopsOfPair: (widths: Widths) => number,
): Cost {
  const { q, k, v, qRope } = inputs;
  const widths = { key: last(k) + (qRope ? last(qRope) : 0), value: last(v) };
  // One tensor in two roles is read once.
  const distinct = new Map(
    Object.entries(inputs).map(([name, spec]) => [spec, name]),
  );
  let moved = 0;
  for (const [spec, name] of distinct) {
    const rows = isKey(name) ? keys : isQuery(name) ? queries : undefined;
    moved += rows === undefined ? bytes(spec) : rowBytes(spec, rows);
  }
  for (const spec of Object.values(outputs)) moved += bytes(spec);
  return {
    flops: pairs * (q?.shape[1] ?? 0) * flopsOfPair(widths),
    bytes: moved,
  };
}

const isKey = (name: string) => ['k', 'v', 'kRope'].includes(name);
const isQuery = (name: string) =>
  ['q', 'qRope', 'o', 'lse', 'dO'].includes(name);

/** Causal, in a window where there is one. */
function plainView({ attributes }: CostedCall): View {
  const { sequences, window = Number.POSITIVE_INFINITY } = attributes as {
    readonly sequences: Sequences;
    readonly window?: number;
  };
  return {
    pairs: overQueries(sequences, (t) => Math.min(t + 1, window)),
    queries: overSequences(sequences, ({ queryCount }) => queryCount),
    keys: overSequences(sequences, ({ keyCount, queryCount }) =>
      Math.min(keyCount, queryCount - 1 + window),
    ),
  };
}

interface Blocked {
  readonly sequences: Sequences;
  readonly length: number;
  readonly stride: number;
  readonly sharing?: number;
}

/** The blocks that lie wholly before a query, its own token included. */
function compressedView({ attributes }: CostedCall): View {
  const blocking = attributes as Blocked;
  const { sequences } = blocking;
  return {
    pairs: overQueries(sequences, (t) => blockCount(t + 1, blocking)),
    queries: overSequences(sequences, ({ queryCount }) => queryCount),
    keys: overSequences(sequences, (s) => blockCount(s.keyCount, blocking)),
  };
}

/** Compressed blocks, seen by every r-th position. */
function leadersView({ attributes }: CostedCall): View {
  const blocking = attributes as Blocked;
  const { sequences, sharing = 1 } = blocking;
  const isLeader = (t: number) => t % sharing === 0;
  return {
    pairs: overQueries(sequences, (t) =>
      isLeader(t) ? blockCount(t + 1, blocking) : 0,
    ),
    queries: overQueries(sequences, (t) => (isLeader(t) ? 1 : 0)),
    keys: overSequences(sequences, (s) => blockCount(s.keyCount, blocking)),
  };
}

/**
 * The tokens of n blocks, the own one up to the query: lists of `selectBlocks`,
 * which hold as many blocks as there are, and always the own one.
 */
function selectedView({ inputs, attributes }: CostedCall): View {
  const { sequences, blockSize, sharing } = attributes as {
    readonly sequences: Sequences;
    readonly blockSize: number;
    readonly sharing: number;
  };
  const count = inputs.indices?.shape[2] ?? 0;
  const seen = (t: number) => {
    const own = Math.floor(t / blockSize);
    const whole = Math.min(count, own + 1) - 1;
    return whole * blockSize + (t % blockSize) + 1;
  };
  return {
    pairs: overQueries(sequences, seen),
    queries: overSequences(sequences, ({ queryCount }) => queryCount),
    // Each list may name other tokens than the one before.
    keys: overSequences(sequences, ({ keyCount, queryCount }) =>
      Math.min(keyCount, Math.ceil(queryCount / sharing) * count * blockSize),
    ),
  };
}

/** The sum of `value` over the positions of all queries. */
function overQueries(
  { list }: Sequences,
  value: (position: number) => number,
): number {
  let sum = 0;
  for (const { queryCount, keyCount } of list) {
    for (let t = keyCount - queryCount; t < keyCount; t++) sum += value(t);
  }
  return sum;
}

function overSequences(
  { list }: Sequences,
  value: (sequence: Sequences['list'][number]) => number,
): number {
  return list.reduce((sum, sequence) => sum + value(sequence), 0);
}

/** Rows times heads of `rows [N, H, ...]` times a head's matrix `[H, M, K]`. */
function headProduct(
  call: CostedCall,
  rows: TensorSpec | undefined,
  matrices: TensorSpec | undefined,
): Cost {
  const perHead = size(matrices) / Math.max(1, matrices?.shape[0] ?? 1);
  const products = (rows?.shape[0] ?? 0) * (rows?.shape[1] ?? 0);
  return { flops: 2 * products * perHead, bytes: allBytes(call) };
}

/** Elements of the states that all queries pass through. */
function stateElements({ inputs: { q, v }, attributes }: CostedCall): number {
  const { sequences } = attributes as { readonly sequences: Sequences };
  const rows = overSequences(sequences, ({ queryCount }) => queryCount);
  return rows * (q?.shape[1] ?? 0) * last(q) * last(v);
}

function allBytes({ inputs, outputs }: CostedCall): number {
  const distinct = new Set([
    ...Object.values(inputs),
    ...Object.values(outputs),
  ]);
  return [...distinct].reduce((sum, spec) => sum + bytes(spec), 0);
}

const size = (spec: TensorSpec | undefined) => (spec ? sizeOf(spec.shape) : 0);

const last = (spec: TensorSpec | undefined) => spec?.shape.at(-1) ?? 0;

const bytes = (spec: TensorSpec | undefined) =>
  spec ? size(spec) * bytesPerElement[spec.dtype] : 0;

/** Bytes of some of a tensor's rows. */
function rowBytes(spec: TensorSpec | undefined, rows: number): number {
  const all = spec?.shape[0] ?? 0;
  return all === 0 ? 0 : (bytes(spec) / all) * Math.min(rows, all);
}
