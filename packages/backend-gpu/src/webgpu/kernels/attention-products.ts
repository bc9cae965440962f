/**
 * The products of attention's tiles, as WGSL. A tile has `rows` rows in
 * registers, `perThread` a thread, and 64 columns: thread (ty, tx) of 16
 * columns of threads has rows `ty + TY i`, with `TY = rows / perThread`.
 */
import type { Tensor } from '@asa/core';
import { type Binding, input, output } from '../launch';
import { unroll } from './context';

export interface AttentionShape {
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly ropeWidth: number;
  readonly valueWidth: number;
}

export interface Tile {
  readonly rows: number;
  readonly perThread: number;
}

/** Columns of a tile: keys, or rows in the pass over keys. */
export const COLUMNS = 64;

/** Channels of a product that lie in workgroup memory at a time, in fours. */
const QUADS = 4;
/** An odd number of vectors: neighbouring rows start in different banks. */
const PITCH = QUADS + 1;
/** Vectors of a row of weights. */
const WEIGHTS_PITCH = COLUMNS / 4 + 1;
/** Rows of values that lie in workgroup memory at a time. */
const SLICE = 16;

/** Rows of threads. */
const across = ({ rows, perThread }: Tile) => rows / perThread;
export const threadsOf = (tile: Tile) => 16 * across(tile);

/** Where each thread stands. */
export const threadPlace = `let ty = tid / 16u;
let tx = tid % 16u;`;

/** Row of the tile of a thread's row i. */
export const rowOf = (tile: Tile, i: number) => `(ty + ${across(tile) * i}u)`;

export const times = (
  counts: readonly number[],
  text: (...i: number[]) => string,
) => {
  const [first = 0, second = 1] = counts;
  return unroll(first, (i) => unroll(second, (j) => text(i, j)));
};

/** Vectors of four channels that lie 16 apart, of each row. */
export const registers = (width: number) => Math.ceil(width / 64);

/** The vector of four channels that register r holds. */
export const quadOf = (start: number, r: number) =>
  `(${start / 4 + 16 * r}u + tx)`;

/** Rows of all operands are whole vectors of four. */
export function isVector({ width, ropeWidth, valueWidth }: AttentionShape) {
  return [width, ropeWidth, valueWidth].every((extent) => extent % 4 === 0);
}

/** Operands as the loads and stores below want them. */
export function vectors(shape: AttentionShape) {
  const as = ({ dtype }: Tensor) =>
    isVector(shape) ? `vec4<${dtype}>` : undefined;
  return {
    input: (tensor: Tensor): Binding => input(tensor, as(tensor)),
    output: (tensor: Tensor): Binding => output(tensor, as(tensor)),
  };
}

/** Channels that lie together, as WGSL. */
interface Part {
  readonly name: string;
  readonly width: string;
  /** Channels of a whole row, `width` as a rule, and where these start. */
  readonly pitch?: string;
  readonly start?: string;
}

/** Element `c` of the part, counted in vectors of `step` channels. */
export const at = (
  { name, width, pitch = width, start = '0u' }: Part,
  row: string,
  c: string,
  step: number,
) => `${name}[(${row} * (${pitch}) + (${start})) / ${step}u + ${c}]`;

/**
 * `name(row, c, value)` stores channels 4 c .. 4 c + 3 to the parts, which
 * begin at channel `start`; what lies behind them is dropped.
 */
export function store(
  shape: AttentionShape,
  name: string,
  parts: readonly Part[],
  start = '0u',
): string {
  const step = isVector(shape) ? 4 : 1;
  const writes = inOrder(
    parts,
    step,
    start,
    (part, c) => `${at(part, 'row', c, step)} = t_${part.name}(value);`,
  );
  if (step === 4) {
    return `fn ${name}(row: u32, c: u32, value: vec4f) {
  ${writes}
}`;
  }
  return `fn ${name}One(row: u32, c: u32, value: f32) {
  ${writes}
}
fn ${name}(row: u32, c: u32, value: vec4f) {
  ${unroll(4, (p) => `${name}One(row, 4u * c + ${p}u, value[${p}]);`)}
}`;
}

/** The part that has `c`, counted in vectors of `step` from `start` on. */
function inOrder<T extends Part>(
  parts: readonly T[],
  step: number,
  start: string,
  text: (part: T, c: string) => string,
  c = 'c',
): string {
  let begin = start;
  return parts
    .map((part) => {
      const inside = `${c} - (${begin}) / ${step}u`;
      begin = `${begin} + ${part.width}`;
      return `if (${c} < (${begin}) / ${step}u) { ${text(part, inside)} }`;
    })
    .join(' else ');
}

/** Channels that a product or a sum reads from rows or keys of the tile. */
export interface Source {
  /** Rows that are not there give 0 in sums, and anything in products. */
  readonly table: 'row' | 'key';
  readonly parts: readonly SourcePart[];
}

export interface SourcePart extends Part {
  /** Row of the tensor, as WGSL of `row`, the entry of the table. */
  readonly row: string;
}

/** What the passes read, by name. */
export function sources({ ropeWidth }: AttentionShape) {
  const row = 'row';
  const key = '(row * GK + keyHead)';
  const rope = (part: SourcePart) => (ropeWidth > 0 ? [part] : []);
  const of = (
    table: Source['table'],
    parts: readonly SourcePart[],
  ): Source => ({
    table,
    parts,
  });
  return {
    q: of('row', [
      { name: 'q', width: 'D', row },
      ...rope({ name: 'qRope', width: 'DR', row }),
    ]),
    k: of('key', [
      { name: 'k', width: 'D', row: key },
      ...rope({ name: 'kRope', width: 'DR', row }),
    ]),
    v: of('key', [{ name: 'v', width: 'DV', row: key }]),
    dO: of('row', [{ name: 'dO', width: 'DV', row }]),
  };
}

/** The tables of rows and keys. */
export const tables = `
// Row q H + head of each tile row, and the key positions that it sees.
var<workgroup> rowIndex: array<u32, M>;
var<workgroup> rowIsThere: array<u32, M>;
var<workgroup> rowFirst: array<i32, M>;
var<workgroup> rowLast: array<i32, M>;
// Key position of each tile key, -1 for none; its row on the key axis.
var<workgroup> keyPosition: array<i32, N>;
var<workgroup> keyRow: array<u32, N>;`;

export const indexOf = { row: 'rowIndex', key: 'keyRow' } as const;
const isThere = {
  row: (i: string) => `rowLast[${i}] >= 0`,
  key: (i: string) => `keyPosition[${i}] >= 0`,
} as const;

/** Four channels of a part, 0 behind its last one. */
function quad(
  shape: AttentionShape,
  part: SourcePart,
  c: string,
  mayEnd: boolean,
): string {
  if (isVector(shape)) {
    const value = `vec4f(${at(part, part.row, c, 4)})`;
    return mayEnd
      ? `select(vec4f(), ${value}, ${c} < ${part.width} / 4u)`
      : value;
  }
  const one = (p: number) =>
    `select(0.0, f32(${at(part, part.row, `4u * (${c}) + ${p}u`, 1)}), 4u * (${c}) + ${p}u < ${part.width})`;
  return `vec4f(${[0, 1, 2, 3].map(one).join(', ')})`;
}

/** Workgroup memory of the products; columns of sums of at most `width`. */
export function workspace(tile: Tile, width: number): string {
  const values = (SLICE * valueStep(width)) / 4;
  return `
var<workgroup> tileA: array<vec4f, ${tile.rows * PITCH}>;
var<workgroup> tileB: array<vec4f, ${Math.max(COLUMNS * PITCH, values)}>;
var<workgroup> weights: array<vec4f, ${tile.rows * WEIGHTS_PITCH}>;`;
}

/** A row's four weights of this thread: columns 4 tx .. 4 tx + 3. */
export const weightsOf = (row: string) =>
  `weights[${row} * ${WEIGHTS_PITCH}u + tx]`;

/** Weight of a row and a column. */
export const weightAt = (row: string, column: string) =>
  `weights[(${row}) * ${WEIGHTS_PITCH}u + (${column}) / 4u][(${column}) % 4u]`;

/** Puts a thread's value of a row beside those of the other columns. */
export const putPartial = (row: string, value: string) =>
  `tileA[${row} * ${PITCH}u + tx / 4u][tx % 4u] = ${value};`;

/** The row's 16 values that were put, four by four. */
export const partials = (row: string) =>
  Array.from({ length: 4 }, (_, p) => `tileA[${row} * ${PITCH}u + ${p}u]`);

/** Slots of `vectors`, one or more a thread. */
export function eachSlot(
  vectors: number,
  threads: number,
  text: (i: number, x: string) => string,
): string {
  return unroll(Math.ceil(vectors / threads), (i) => {
    const x = i === 0 ? 'tid' : `(tid + ${i * threads}u)`;
    const isPartial = (i + 1) * threads > vectors;
    return isPartial ? `if (${x} < ${vectors}u) { ${text(i, x)} }` : text(i, x);
  });
}

/**
 * `name[i]_[j] += a(row i) . b(column 4 tx + j)`, sums over all channels. The
 * next channels are on their way into registers while some are multiplied.
 */
export function product(
  shape: AttentionShape,
  name: string,
  tile: Tile,
  a: Source,
  b: Source,
): string {
  const threads = threadsOf(tile);
  const { perThread } = tile;
  const rows = tile.rows * QUADS;
  const columns = COLUMNS * QUADS;
  const line = (x: string) => `${x} / ${QUADS}u`;
  // Line s holds column 4 (s % 16) + s / 16: threads read side by side.
  const column = (x: string) => `${line(x)} % 16u * 4u + ${x} / ${16 * QUADS}u`;
  const steps = (part: Part) =>
    `((${part.width} + ${4 * QUADS - 1}u) / ${4 * QUADS}u)`;
  // Both sides have as many channels, in parts of the same widths.
  const load = unroll(a.parts.length, (p) => {
    const [left, right] = [a.parts[p], b.parts[p]];
    const first = a.parts.slice(0, p).map(steps).join(' + ') || '0u';
    const read = (side: string, part: SourcePart | undefined, count: number) =>
      part
        ? eachSlot(
            count,
            threads,
            (i, x) =>
              `{ let row = at${side}${i}; next${side}${i} = ${quad(shape, part, `(c0 + ${x} % ${QUADS}u)`, shape[widthOf(part)] % (4 * QUADS) !== 0)}; }`,
          )
        : '';
    return `if (step >= ${first} && step < ${first} + ${left ? steps(left) : '0u'}) {
let c0 = (step - (${first})) * ${QUADS}u;
${read('A', left, rows)}
${read('B', right, columns)}
}`;
  });
  const declare = (
    side: string,
    count: number,
    table: string,
    i: (x: string) => string,
  ) =>
    unroll(
      Math.ceil(count / threads),
      (n) =>
        `var next${side}${n} = vec4f(); let at${side}${n} = ${table}[${i(`min(tid + ${n * threads}u, ${count - 1}u)`)}];`,
    );
  const put = (side: string, count: number) =>
    eachSlot(
      count,
      threads,
      (i, x) =>
        `tile${side}[${line(x)} * ${PITCH}u + ${x} % ${QUADS}u] = next${side}${i};`,
    );
  return `{
${declare('A', rows, indexOf[a.table], line)}
${declare('B', columns, indexOf[b.table], column)}
var step = 0u;
${load}
loop {
  workgroupBarrier();
  ${put('A', rows)}
  ${put('B', columns)}
  workgroupBarrier();
  step++;
  let more = step < ${a.parts.map(steps).join(' + ')};
  ${load}
  for (var c = 0u; c < ${QUADS}u; c++) {
    ${unroll(4, (j) => `let b${j} = tileB[(tx + ${16 * j}u) * ${PITCH}u + c];`)}
    ${unroll(
      perThread,
      (i) => `{ let a = tileA[${rowOf(tile, i)} * ${PITCH}u + c];
    ${unroll(4, (j) => `${name}${i}_${j} = fma(a.w, b${j}.w, fma(a.z, b${j}.z, fma(a.y, b${j}.y, fma(a.x, b${j}.x, ${name}${i}_${j}))));`)} }`,
    )}
  }
  if (!more) { break; }
}
workgroupBarrier();
}`;
}

export const widthOf = ({ width }: Part) =>
  width === 'DR' ? 'ropeWidth' : width === 'DV' ? 'valueWidth' : 'width';

/** `to = ` channels 4 c .. 4 c + 3 of the parts one behind the other. */
function gather(shape: AttentionShape, { parts }: Source, to: string): string {
  if (isVector(shape)) {
    return inOrder(
      parts,
      4,
      '0u',
      (part, c) => `${to} = vec4f(${at(part, part.row, c, 4)});`,
    );
  }
  return unroll(
    4,
    (p) =>
      `{ let d = 4u * c + ${p}u; ${inOrder(
        parts,
        1,
        '0u',
        (part, c) => `${to}[${p}] = f32(${at(part, part.row, c, 1)});`,
        'd',
      )} }`,
  );
}

/** Columns of sums that pass through workgroup memory at a time. */
const valueStep = (width: number) => (width <= 64 ? 64 : 128);

/**
 * `name[i]_[r] += sum over n < 64 of weights[row i, n] b(n)`, channels
 * `start .. end`; register r of four channels as in `quadOf`.
 */
export function accumulate(
  shape: AttentionShape,
  name: string,
  tile: Tile,
  b: Source,
  [start, end]: readonly [number, number],
): string {
  const threads = threadsOf(tile);
  const { perThread } = tile;
  const all = registers(end - start);
  const most = valueStep(end - start) / 64;
  return unroll(Math.ceil(all / most), (p) => {
    const count = Math.min(most, all - p * most);
    const width = 16 * count;
    const load = eachSlot(
      SLICE * width,
      threads,
      (i, x) => `{
  let n = n0 + ${x} / ${width}u;
  let c = ${start / 4 + p * most * 16}u + ${x} % ${width}u;
  let row = ${indexOf[b.table]}[n];
  next${i} = vec4f();
  if (${isThere[b.table]('n')}) { ${gather(shape, b, `next${i}`)} }
}`,
    );
    return `{
var n0 = 0u;
${unroll(Math.ceil((SLICE * width) / threads), (i) => `var next${i} = vec4f();`)}
${load}
loop {
  workgroupBarrier();
  ${eachSlot(SLICE * width, threads, (i, x) => `tileB[${x}] = next${i};`)}
  workgroupBarrier();
  let now = n0 / 4u;
  n0 += ${SLICE}u;
  let more = n0 < ${COLUMNS}u;
  if (more) {
    ${load}
  }
  for (var n = 0u; n < ${SLICE / 4}u; n++) {
    ${unroll(perThread, (i) => `let w${i} = weights[${rowOf(tile, i)} * ${WEIGHTS_PITCH}u + now + n];`)}
    ${times(
      [4, count],
      (
        e,
        r,
      ) => `{ let b = tileB[(4u * n + ${e}u) * ${width}u + ${16 * r}u + tx];
    ${unroll(perThread, (i) => `${name}${i}_${p * most + r} = fma(vec4f(w${i}[${e}]), b, ${name}${i}_${p * most + r});`)} }`,
    )}
  }
  if (!more) { break; }
}
}`;
  });
}
