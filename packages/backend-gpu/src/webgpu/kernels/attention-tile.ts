/**
 * Softmax attention over tiles: M rows (a row is a query's head) against N
 * keys at a time, scores and probabilities in workgroup memory, results in
 * registers. Nothing of the size rows times keys is ever stored. Which rows a
 * tile has, and which keys they see, is all that differs between attention,
 * compressed attention and selected attention: a `View`.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Sequences,
  Tensor,
} from '@asa/core';
import {
  type Binding,
  f32,
  flat,
  input,
  type Launch,
  output,
  type UniformValue,
  u32,
} from '../launch';
import { extent, type KernelContext, sequenceOf, unroll } from './context';

const THREADS = 256;
/** Channels of a product that lie in workgroup memory at a time. */
const DEPTH = 16;

/** Which keys which rows see. Text is WGSL; `s` is the sequence. */
export interface View {
  readonly name: string;
  readonly sequences: Sequences;
  readonly scale: number;
  readonly constants: Readonly<Record<string, number>>;
  readonly uniforms: Readonly<Record<string, UniformValue>>;
  readonly bindings: Readonly<Record<string, Binding | undefined>>;
  /** Heads that share keys and lists: a unit. */
  readonly unitHeads: number;
  /** Functions that the texts below call. */
  readonly declarations: string;
  /** The row of `s` where key position 0 lies. */
  readonly keyStart: string;
  /** Gradients of keys: rows that the key axis has in use. */
  readonly coversKeys: boolean;

  readonly forward: {
    /** Rows of a unit that share a walk over keys. */
    readonly rows: number;
    /** Workgroups on the x axis for tiles of so many rows. */
    tiles(rows: number): number;
    /** Defines `query` (within s), `member`, `isRow` from `tid`. */
    readonly row: string;
    /** Defines `first` and `end`, slots of keys that the tile walks over. */
    readonly range: string;
    /** `keyAt(slot) -> i32`: a position, -1 for none; expression of `slot`. */
    readonly keyAt: string;
  };
  /** First and last key position that the query at position `t` sees. */
  readonly sees: { readonly first: string; readonly last: string };

  readonly backward: {
    /** Keys of a tile. */
    readonly keys: number;
    /** Workgroups on the x axis. */
    readonly tiles: number;
    /** Defines `firstKey`, `endKey`: positions of the tile's keys. */
    readonly range: string;
    /** Calls `walk` for runs of `total` rows; `head0` is the first head. */
    loop(walk: string): string;
    /** Defines `query`, `member`, `isRow` of row `rho` of a run. */
    readonly row: string;
  };
}

export interface AttentionShape {
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly ropeWidth: number;
  readonly valueWidth: number;
}

export function shapeOf({ q, k, v, qRope }: AttentionOperands): AttentionShape {
  return {
    heads: extent(q, 1),
    keyHeads: extent(k, 1),
    width: extent(q, 2),
    ropeWidth: qRope ? extent(qRope, 2) : 0,
    valueWidth: extent(v, 2),
  };
}

export function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** Whether the sequences leave no row of an axis out. */
export function covers(counts: readonly number[], rows: number): boolean {
  return counts.reduce((sum, count) => sum + count, 0) === rows;
}

/** o = softmax(scores) v, online: maxima and sums are corrected as they come. */
export function attend(
  context: KernelContext,
  operands: AttentionOperands,
  { o, lse }: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): void {
  const shape = shapeOf(operands);
  const { heads, valueWidth } = shape;
  const { sequences, forward } = view;
  if (!coversQueries(sequences, o)) fillEmpty(context, o, lse);
  const rows = tileRows(forward.rows, valueWidth);
  context.run({
    kernel: `${view.name}Forward`,
    constants: { ...constantsOf(shape, view), M: rows, N: KEYS },
    bindings: {
      ...operandBindings(operands, sequences),
      ...view.bindings,
      o: output(o),
      lse: output(lse, 'u32'),
    },
    uniforms: { scale: f32(view.scale), ...view.uniforms },
    grid: [forward.tiles(rows), heads / view.unitHeads, sequences.count],
    source: () => forwardSource(shape, view, rows),
  });
}

export function attendBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
): void {
  const { q, k, v, qRope, kRope, o, lse, dO } = inputs;
  const { dQ, dK, dV, dQRope, dKRope } = outputs;
  const operands = { q, k, v, qRope, kRope };
  const shape = shapeOf(operands);
  const { heads, keyHeads, width, ropeWidth, valueWidth } = shape;
  const { sequences, forward, backward } = view;
  const statistics = rowStatistics(context, o, lse, dO);
  const constants = constantsOf(shape, view);
  const uniforms = { scale: f32(view.scale), ...view.uniforms };
  const common = {
    ...operandBindings(operands, sequences),
    ...view.bindings,
    dO: input(dO),
    statistics: input(statistics),
  };

  if (!coversQueries(sequences, o)) {
    for (const gradient of [dQ, dQRope]) if (gradient) context.clear(gradient);
  }
  const rows = tileRows(forward.rows, width + ropeWidth);
  context.run({
    kernel: `${view.name}BackwardQ`,
    constants: { ...constants, M: rows, N: KEYS },
    bindings: {
      ...common,
      dQ: output(dQ),
      dQRope: dQRope && output(dQRope),
    },
    uniforms,
    grid: [forward.tiles(rows), heads / view.unitHeads, sequences.count],
    source: () => backwardQSource(shape, view, rows),
  });

  // The rotary key is shared: each key head gives its part of the gradient.
  const parts =
    dKRope && keyHeads > 1
      ? context.scratch(dKRope.size * keyHeads, 'f32')
      : undefined;
  if (!view.coversKeys) {
    for (const gradient of [dK, dV, parts ?? dKRope]) {
      if (gradient) context.clear(gradient);
    }
  }
  for (const channels of channelParts(width + ropeWidth, valueWidth)) {
    context.run({
      kernel: `${view.name}BackwardKV`,
      constants: { ...constants, ...channels, M: ROWS, N: backward.keys },
      bindings: {
        ...common,
        dK: channels.K0 < Math.min(channels.K1, width) ? output(dK) : undefined,
        dKRope:
          dKRope && channels.K1 > width ? output(parts ?? dKRope) : undefined,
        dV: channels.V1 > channels.V0 ? output(dV) : undefined,
      },
      uniforms,
      grid: [backward.tiles, keyHeads, sequences.count],
      source: () => backwardKVSource(shape, view, channels),
    });
  }
  if (parts && dKRope) {
    sumHeads(context, parts, keyHeads, dKRope);
    parts.free();
  }
  statistics.free();
}

/** Keys of a forward tile. */
const KEYS = 32;
/** Rows of a tile of the pass over keys. */
const ROWS = 32;

/** As many rows as registers hold results for, and as there are. */
function tileRows(rows: number, width: number): number {
  const most = width <= 128 ? 64 : width <= 256 ? 32 : 16;
  let fit = 16;
  while (fit < rows && fit < most) fit *= 2;
  return fit;
}

interface Channels extends Record<string, number> {
  readonly K0: number;
  readonly K1: number;
  readonly V0: number;
  readonly V1: number;
}

const MOST_CHANNELS = 384;

/** Channels of dK (rotary ones behind) and dV that one pass sums. */
function channelParts(keyWidth: number, valueWidth: number): Channels[] {
  if (keyWidth + valueWidth <= MOST_CHANNELS) {
    return [{ K0: 0, K1: keyWidth, V0: 0, V1: valueWidth }];
  }
  const cut = (width: number) =>
    Array.from({ length: Math.ceil(width / MOST_CHANNELS) }, (_, part) => {
      const start = part * MOST_CHANNELS;
      return [start, Math.min(start + MOST_CHANNELS, width)] as const;
    });
  return [
    ...cut(keyWidth).map(([K0, K1]) => ({ K0, K1, V0: 0, V1: 0 })),
    ...cut(valueWidth).map(([V0, V1]) => ({ K0: 0, K1: 0, V0, V1 })),
  ];
}

function constantsOf(shape: AttentionShape, view: View) {
  const { heads, keyHeads, width, ropeWidth, valueWidth } = shape;
  return {
    H: heads,
    GK: keyHeads,
    HT: view.unitHeads,
    D: width,
    DR: ropeWidth,
    DV: valueWidth,
    ...view.constants,
  };
}

function operandBindings(
  { q, k, v, qRope, kRope }: AttentionOperands,
  sequences: Sequences,
): Launch['bindings'] {
  return {
    q: input(q),
    k: input(k),
    v: input(v),
    qRope: qRope && input(qRope),
    kRope: kRope && input(kRope),
    sequences: input(sequences.on(q.backend)),
  };
}

function coversQueries(sequences: Sequences, o: Tensor): boolean {
  const counts = sequences.list.map(({ queryCount }) => queryCount);
  return covers(counts, extent(o, 0));
}

/** Rows of no sequence: output 0, LSE -inf. */
function fillEmpty(context: KernelContext, o: Tensor, lse: Tensor): void {
  context.clear(o);
  context.run({
    kernel: 'fillEmpty',
    constants: {},
    bindings: { lse: output(lse, 'u32') },
    uniforms: { count: u32(lse.size) },
    grid: flat(Math.ceil(lse.size / THREADS)),
    source: () => ({
      threads: THREADS,
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i < u.count) { lse[i] = 0xff800000u; }`,
    }),
  });
}

/** Of each row its LSE (0 where it is -inf) and dO . o, f32 `[Nq H, 2]`. */
function rowStatistics(
  context: KernelContext,
  o: Tensor,
  lse: Tensor,
  dO: Tensor,
): Tensor {
  const statistics = context.scratch(2 * lse.size, 'f32');
  const threads = 64;
  context.run({
    kernel: 'rowStatistics',
    constants: { DV: extent(o, 2) },
    bindings: {
      o: input(o),
      lse: input(lse, 'u32'),
      dO: input(dO),
      statistics: output(statistics),
    },
    uniforms: { count: u32(lse.size) },
    grid: flat(Math.ceil(lse.size / threads)),
    source: () => ({
      threads,
      body: `let row = (group.x + group.y * groups.x) * ${threads}u + tid;
if (row >= u.count) { return; }
var delta = 0.0;
for (var c = 0u; c < DV; c++) {
  delta += f32(dO[row * DV + c]) * f32(o[row * DV + c]);
}
let bits = lse[row];
statistics[2u * row] = bitcast<f32>(select(bits, 0u, bits == 0xff800000u));
statistics[2u * row + 1u] = delta;`,
    }),
  });
  return statistics;
}

/** `y[n, c] = sum over g of x[n, g, c]` */
function sumHeads(
  context: KernelContext,
  x: Tensor,
  heads: number,
  y: Tensor,
): void {
  context.run({
    kernel: 'sumHeads',
    constants: {},
    bindings: { x: input(x), y: output(y) },
    uniforms: {
      count: u32(y.size),
      heads: u32(heads),
      width: u32(extent(y, -1)),
    },
    grid: flat(Math.ceil(y.size / THREADS)),
    source: () => ({
      threads: THREADS,
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i >= u.count) { return; }
let n = i / u.width;
var sum = 0.0;
for (var g = 0u; g < u.heads; g++) {
  sum += x[(n * u.heads + g) * u.width + i % u.width];
}
y[i] = t_y(sum);`,
    }),
  });
}

/** Columns of results that pass through workgroup memory at a time. */
const valueStep = (width: number) => Math.min(64, Math.ceil(width / 16) * 16);

const times = (counts: readonly number[], text: (...i: number[]) => string) => {
  const [first = 0, second = 1] = counts;
  return unroll(first, (i) => unroll(second, (j) => text(i, j)));
};

/** Row and key tables of a tile, and the loads that use them. */
function tables(shape: AttentionShape, hasGradient: boolean): string {
  const rotary = shape.ropeWidth > 0;
  return `
// Row q H + head of each tile row, and the key positions that it sees.
var<workgroup> rowIndex: array<u32, M>;
var<workgroup> rowIsThere: array<u32, M>;
var<workgroup> rowFirst: array<i32, M>;
var<workgroup> rowLast: array<i32, M>;
// Key position of each tile key, -1 for none; its row on the key axis.
var<workgroup> keyPosition: array<i32, N>;
var<workgroup> keyRow: array<u32, N>;

fn loadQ(m: u32, c: u32) -> f32 {
  if (rowLast[m] < 0) { return 0.0; }
  if (c < D) { return f32(q[rowIndex[m] * D + c]); }
  ${rotary ? 'if (c < D + DR) { return f32(qRope[rowIndex[m] * DR + c - D]); }' : ''}
  return 0.0;
}
fn loadK(n: u32, c: u32, head: u32) -> f32 {
  if (keyPosition[n] < 0) { return 0.0; }
  if (c < D) { return f32(k[(keyRow[n] * GK + head) * D + c]); }
  ${rotary ? 'if (c < D + DR) { return f32(kRope[keyRow[n] * DR + c - D]); }' : ''}
  return 0.0;
}
fn loadV(n: u32, c: u32, head: u32) -> f32 {
  if (keyPosition[n] < 0 || c >= DV) { return 0.0; }
  return f32(v[(keyRow[n] * GK + head) * DV + c]);
}
${
  hasGradient
    ? `fn loadDO(m: u32, c: u32) -> f32 {
  if (rowLast[m] < 0 || c >= DV) { return 0.0; }
  return f32(dO[rowIndex[m] * DV + c]);
}`
    : ''
}`;
}

/**
 * `name[i]_[j] += sum over c < width of a(row i, c) b(column j, c)`, threads 16
 * by 16: thread (ty, tx) has rows `ty TM + i` and columns `tx + 16 j`.
 */
function product(
  name: string,
  [rows, a]: readonly [number, string],
  [columns, b]: readonly [number, string],
  width: string,
): string {
  const [tm, tn] = [rows / 16, columns / 16];
  const pitch = DEPTH + 1;
  return `for (var c0 = 0u; c0 < ${width}; c0 += ${DEPTH}u) {
  workgroupBarrier();
  for (var x = tid; x < ${rows * DEPTH}u; x += ${THREADS}u) {
    let m = x / ${DEPTH}u;
    let c = c0 + x % ${DEPTH}u;
    tileA[m * ${pitch}u + x % ${DEPTH}u] = ${a};
  }
  for (var x = tid; x < ${columns * DEPTH}u; x += ${THREADS}u) {
    let n = x / ${DEPTH}u;
    let c = c0 + x % ${DEPTH}u;
    tileB[n * ${pitch}u + x % ${DEPTH}u] = ${b};
  }
  workgroupBarrier();
  for (var c = 0u; c < ${DEPTH}u; c++) {
    ${unroll(tm, (i) => `let a${i} = tileA[(ty * ${tm}u + ${i}u) * ${pitch}u + c];`)}
    ${unroll(tn, (j) => `let b${j} = tileB[(tx + ${16 * j}u) * ${pitch}u + c];`)}
    ${times([tm, tn], (i, j) => `${name}${i}_${j} = fma(a${i}, b${j}, ${name}${i}_${j});`)}
  }
}`;
}

/**
 * `name[i]_[c] += sum over n < inner of weights[row i, n] b(n, column c)`, with
 * columns `start .. end` in steps through workgroup memory. Thread (ty, tx) has
 * columns `start + step p + tx + 16 j`, register `p step / 16 + j`.
 */
function accumulate(
  name: string,
  weights: string,
  rows: number,
  inner: number,
  b: string,
  [start, end]: readonly [number, number],
): string {
  const tm = rows / 16;
  const step = valueStep(end - start);
  const tn = step / 16;
  return unroll(
    Math.ceil((end - start) / step),
    (p) => `workgroupBarrier();
for (var x = tid; x < ${inner * step}u; x += ${THREADS}u) {
  let n = x / ${step}u;
  let c = ${start + p * step}u + x % ${step}u;
  tileB[n * ${step + 1}u + x % ${step}u] = ${b};
}
workgroupBarrier();
for (var n = 0u; n < ${inner}u; n++) {
  ${unroll(tm, (i) => `let w${i} = ${weights}[(ty * ${tm}u + ${i}u) * ${inner + 1}u + n];`)}
  ${unroll(tn, (j) => `let b${j} = tileB[n * ${step + 1}u + tx + ${16 * j}u];`)}
  ${times([tm, tn], (i, j) => `${name}${i}_${p * tn + j} = fma(w${i}, b${j}, ${name}${i}_${p * tn + j});`)}
}`,
  );
}

/** Registers of `accumulate`, a row. */
const registers = (width: number) =>
  (Math.ceil(width / valueStep(width)) * valueStep(width)) / 16;

/** Column of register r of `accumulate`. */
const columnOf = (start: number, r: number) => `${start + 16 * r}u + tx`;

/** Fills the row tables, M threads. */
const rowTable = (view: View, row: string, head: string) => `
if (tid < M) {
  ${row}
  let t = s.keyCount - s.queryCount + query;
  rowIsThere[tid] = select(0u, 1u, isRow);
  rowIndex[tid] = (s.queryStart + query) * H + ${head} + member;
  rowFirst[tid] = ${view.sees.first};
  rowLast[tid] = select(-1, ${view.sees.last}, isRow);
}`;

/** Fills the key tables from slots, N threads. */
const keyTable = (view: View) => `
workgroupBarrier();
if (tid < N) {
  let slot = base + tid;
  var position = -1;
  if (slot < end) { position = ${view.forward.keyAt}; }
  keyPosition[tid] = position;
  keyRow[tid] = ${view.keyStart} + u32(max(position, 0));
}`;

const workspace = (a: number, b: number) => `
var<workgroup> tileA: array<f32, ${a}>;
var<workgroup> tileB: array<f32, ${b}>;`;

/** Large and negative: what no score is, and no infinity either. */
const LOWEST = '-1e30';

function forwardSource(shape: AttentionShape, view: View, rows: number) {
  const { valueWidth } = shape;
  const tm = rows / 16;
  const tn = KEYS / 16;
  const columns = registers(valueWidth);
  const tileB = Math.max(
    KEYS * (DEPTH + 1),
    KEYS * (valueStep(valueWidth) + 1),
  );
  return {
    threads: THREADS,
    declarations: `${sequenceOf}
${view.declarations}
${tables(shape, false)}
${workspace(rows * (DEPTH + 1), tileB)}
// Probabilities, [M, N].
var<workgroup> weights: array<f32, ${rows * (KEYS + 1)}>;`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
let ty = tid / 16u;
let tx = tid % 16u;
${view.forward.range}
${rowTable(view, view.forward.row, 'head0')}
${unroll(tm, (i) => `var most${i} = ${LOWEST}; var sum${i} = 0.0;`)}
${times([tm, columns], (i, c) => `var o${i}_${c} = 0.0;`)}
for (var base = first; base < end; base += N) {
  ${keyTable(view)}
  ${times([tm, tn], (i, j) => `var s${i}_${j} = 0.0;`)}
  ${product('s', [rows, 'loadQ(m, c)'], [KEYS, 'loadK(n, c, keyHead)'], 'D + DR')}
  workgroupBarrier();
  ${unroll(tn, (j) => `let at${j} = keyPosition[tx + ${16 * j}u];`)}
  ${unroll(
    tm,
    (i) => `let row${i} = ty * ${tm}u + ${i}u;
  var top${i} = ${LOWEST};
  ${unroll(
    tn,
    (
      j,
    ) => `let sees${i}_${j} = at${j} >= rowFirst[row${i}] && at${j} <= rowLast[row${i}];
  s${i}_${j} *= u.scale;
  top${i} = max(top${i}, select(${LOWEST}, s${i}_${j}, sees${i}_${j}));`,
  )}
  tileA[row${i} * ${DEPTH + 1}u + tx] = top${i};`,
  )}
  workgroupBarrier();
  ${unroll(
    tm,
    (i) => `top${i} = most${i};
  for (var x = 0u; x < 16u; x++) { top${i} = max(top${i}, tileA[row${i} * ${DEPTH + 1}u + x]); }
  let fade${i} = exp(most${i} - top${i});
  most${i} = top${i};
  sum${i} *= fade${i};
  ${unroll(
    tn,
    (
      j,
    ) => `let p${i}_${j} = select(0.0, exp(min(s${i}_${j} - top${i}, 0.0)), sees${i}_${j});
  sum${i} += p${i}_${j};
  weights[row${i} * ${KEYS + 1}u + tx + ${16 * j}u] = p${i}_${j};`,
  )}
  ${unroll(columns, (c) => `o${i}_${c} *= fade${i};`)}`,
  )}
  ${accumulate('o', 'weights', rows, KEYS, 'loadV(n, c, keyHead)', [0, valueWidth])}
}
workgroupBarrier();
${unroll(tm, (i) => `tileA[(ty * ${tm}u + ${i}u) * ${DEPTH + 1}u + tx] = sum${i};`)}
workgroupBarrier();
${unroll(
  tm,
  (i) => `{
  let row = ty * ${tm}u + ${i}u;
  var total = 0.0;
  for (var x = 0u; x < 16u; x++) { total += tileA[row * ${DEPTH + 1}u + x]; }
  let isEmpty = total <= 0.0;
  let inverse = select(1.0 / max(total, 1e-37), 0.0, isEmpty);
  if (rowIsThere[row] == 1u) {
    let at = rowIndex[row];
    if (tx == 0u) {
      lse[at] = select(bitcast<u32>(most${i} + log(max(total, 1e-37))), 0xff800000u, isEmpty);
    }
    ${unroll(columns, (c) => `if (${columnOf(0, c)} < DV) { o[at * DV + ${columnOf(0, c)}] = t_o(o${i}_${c} * inverse); }`)}
  }
}`,
)}`,
  };
}

/** dQ = sum over keys of dS k, dS = p (dO . v - dO . o) scale */
function backwardQSource(shape: AttentionShape, view: View, rows: number) {
  const { width, ropeWidth } = shape;
  const all = width + ropeWidth;
  const tm = rows / 16;
  const tn = KEYS / 16;
  const columns = registers(all);
  const tileB = Math.max(KEYS * (DEPTH + 1), KEYS * (valueStep(all) + 1));
  const isRotary = ropeWidth > 0;
  return {
    threads: THREADS,
    declarations: `${sequenceOf}
${view.declarations}
${tables(shape, true)}
${scoreGradient}
${workspace(rows * (DEPTH + 1), tileB)}
// dS, [M, N].
var<workgroup> weights: array<f32, ${rows * (KEYS + 1)}>;`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
let ty = tid / 16u;
let tx = tid % 16u;
${view.forward.range}
${rowTable(view, view.forward.row, 'head0')}
${times([tm, columns], (i, c) => `var d${i}_${c} = 0.0;`)}
for (var base = first; base < end; base += N) {
  ${keyTable(view)}
  ${times([tm, tn], (i, j) => `var s${i}_${j} = 0.0; var g${i}_${j} = 0.0;`)}
  ${product('s', [rows, 'loadQ(m, c)'], [KEYS, 'loadK(n, c, keyHead)'], 'D + DR')}
  ${product('g', [rows, 'loadDO(m, c)'], [KEYS, 'loadV(n, c, keyHead)'], 'DV')}
  ${times(
    [tm, tn],
    (i, j) => `{
    let row = ty * ${tm}u + ${i}u;
    let n = tx + ${16 * j}u;
    weights[row * ${KEYS + 1}u + n] = scoreGradient(row, n, s${i}_${j}, g${i}_${j}).y;
  }`,
  )}
  ${accumulate('d', 'weights', rows, KEYS, 'loadK(n, c, keyHead)', [0, all])}
}
workgroupBarrier();
${unroll(
  tm,
  (i) => `{
  let row = ty * ${tm}u + ${i}u;
  if (rowIsThere[row] == 1u) {
    let at = rowIndex[row];
    ${unroll(
      columns,
      (c) => `{
      let c = ${columnOf(0, c)};
      if (c < D) { dQ[at * D + c] = t_dQ(d${i}_${c}); }
      ${isRotary ? `else if (c < D + DR) { dQRope[at * DR + c - D] = t_dQRope(d${i}_${c}); }` : ''}
    }`,
    )}
  }
}`,
)}`,
  };
}

/** `p` and `dS` of a row and a key of the tile, 0 where it is not seen. */
const scoreGradient = `
fn scoreGradient(row: u32, n: u32, score: f32, dP: f32) -> vec2f {
  let position = keyPosition[n];
  if (position < rowFirst[row] || position > rowLast[row]) { return vec2f(); }
  let at = 2u * rowIndex[row];
  let p = exp(min(score * u.scale - statistics[at], 80.0));
  return vec2f(p, p * (dP - statistics[at + 1u]) * u.scale);
}`;

/**
 * dV = sum over rows of p dO, dK = sum over rows of dS q: one workgroup a tile
 * of keys walks over the rows that see any of them, always in the same order.
 */
function backwardKVSource(
  shape: AttentionShape,
  view: View,
  { K0, K1, V0, V1 }: Channels,
) {
  const { keys } = view.backward;
  const tk = keys / 16;
  const tm = ROWS / 16;
  const hasK = K1 > K0;
  const hasV = V1 > V0;
  const kRegisters = hasK ? registers(K1 - K0) : 0;
  const vRegisters = hasV ? registers(V1 - V0) : 0;
  const steps = [hasK ? valueStep(K1 - K0) : 0, hasV ? valueStep(V1 - V0) : 0];
  const tileB = ROWS * (Math.max(DEPTH, ...steps) + 1);
  const hasRotary = shape.ropeWidth > 0 && K1 > shape.width;
  const hasContent = K0 < Math.min(K1, shape.width) && hasK;
  const walk = `
for (var rho0 = 0u; rho0 < total; rho0 += M) {
  workgroupBarrier();
  ${rowTable(
    view,
    `let rho = rho0 + tid;
  ${view.backward.row}`,
    'head0',
  )}
  ${times([tk, tm], (i, j) => `var s${i}_${j} = 0.0; var g${i}_${j} = 0.0;`)}
  ${product('s', [keys, 'loadK(m, c, keyHead)'], [ROWS, 'loadQ(n, c)'], 'D + DR')}
  ${hasK ? product('g', [keys, 'loadV(m, c, keyHead)'], [ROWS, 'loadDO(n, c)'], 'DV') : ''}
  workgroupBarrier();
  ${times(
    [tk, tm],
    (i, j) => `{
    let n = ty * ${tk}u + ${i}u;
    let row = tx + ${16 * j}u;
    let both = scoreGradient(row, n, s${i}_${j}, g${i}_${j});
    ${hasV ? `weightsP[n * ${ROWS + 1}u + row] = both.x;` : ''}
    ${hasK ? `weightsS[n * ${ROWS + 1}u + row] = both.y;` : ''}
  }`,
  )}
  ${hasV ? accumulate('v', 'weightsP', keys, ROWS, 'loadDO(n, c)', [V0, V1]) : ''}
  ${hasK ? accumulate('k', 'weightsS', keys, ROWS, 'loadQ(n, c)', [K0, K1]) : ''}
}`;
  return {
    threads: THREADS,
    declarations: `${sequenceOf}
${view.declarations}
${tables(shape, true)}
${scoreGradient}
${workspace(keys * (DEPTH + 1), tileB)}
${hasV ? `var<workgroup> weightsP: array<f32, ${keys * (ROWS + 1)}>;` : ''}
${hasK ? `var<workgroup> weightsS: array<f32, ${keys * (ROWS + 1)}>;` : ''}`,
    body: `let s = sequenceOf(group.z);
let keyHead = group.y;
let ty = tid / 16u;
let tx = tid % 16u;
${view.backward.range}
if (firstKey >= endKey) { return; }
if (tid < N) {
  let position = firstKey + tid;
  keyPosition[tid] = select(-1, i32(position), position < endKey);
  keyRow[tid] = ${view.keyStart} + position;
}
${times([tk, kRegisters], (i, c) => `var k${i}_${c} = 0.0;`)}
${times([tk, vRegisters], (i, c) => `var v${i}_${c} = 0.0;`)}
${view.backward.loop(walk)}
${unroll(
  tk,
  (i) => `{
  let n = ty * ${tk}u + ${i}u;
  if (keyPosition[n] >= 0) {
    let at = keyRow[n] * GK + keyHead;
    ${unroll(
      kRegisters,
      (c) => `{
      let c = ${columnOf(K0, c)};
      if (c < ${K1}u) {
        ${hasContent ? `if (c < D) { dK[at * D + c] = t_dK(k${i}_${c}); }` : ''}
        ${hasRotary ? `if (c >= D) { dKRope[at * DR + c - D] = t_dKRope(k${i}_${c}); }` : ''}
      }
    }`,
    )}
    ${unroll(
      vRegisters,
      (c) =>
        `if (${columnOf(V0, c)} < ${V1}u) { dV[at * DV + ${columnOf(V0, c)}] = t_dV(v${i}_${c}); }`,
    )}
  }
}`,
)}`,
  };
}
