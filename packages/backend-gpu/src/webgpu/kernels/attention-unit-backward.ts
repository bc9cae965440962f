/** The backward passes by matrix units: over tiles of rows and of keys. */
import { keyStores } from './attention-backward';
import {
  type AttentionShape,
  type Source,
  sources,
  store,
  widthOf,
} from './attention-products';
import {
  eachQuad,
  extentOf,
  firstKeyTables,
  flag,
  fourOf,
  keyStaging,
  layoutOf,
  perRow,
  pitchesOf,
  putSums,
  STEP,
  scaleSums,
  scoreElements,
  staging,
  threadsOf,
  type UnitTile,
} from './attention-unit';
import {
  type KeyView,
  rowStaging,
  type TableStaging,
  type View,
} from './attention-view';
import { sequenceOf, unroll } from './context';
import { unitMatrices } from './unit-matrices';

/** Gradients of scores are stored in f16 as parts of a bound, this large. */
const FULL = 2 ** 15;
/** The bound is so many powers of two above the largest when it is set. */
const HEADROOM = '9.0';
/** What no gradient worth storing is below. */
const LOWEST_BOUND = '2.6e-26';
/** A probability is at most 1, or little more. */
const WEIGHT = 2 ** 14;

/** Both passes' memory, with room for `rows` and `keys` in the tables. */
const memory = (tile: UnitTile, rows: string, keys: string) => `
// Row q H + head of each row, the key positions that it sees, LSE, dO . o.
var<workgroup> rowIndex: array<u32, ${rows}>;
var<workgroup> rowIsThere: array<u32, ${rows}>;
var<workgroup> rowFirst: array<i32, ${rows}>;
var<workgroup> rowLast: array<i32, ${rows}>;
var<workgroup> rowNorm: array<f32, ${rows}>;
var<workgroup> rowDelta: array<f32, ${rows}>;
// Position of each key, -1 for none; its row on the key axis.
var<workgroup> keyPosition: array<i32, ${keys}>;
var<workgroup> keyRow: array<u32, ${keys}>;
var<workgroup> factors: array<${tile.element}, ${layoutOf(tile).size}>;
var<workgroup> scores: array<f32, ${2 * scoreElements(tile)}>;
var<workgroup> maxima: array<f32, ${threadsOf(tile)}>;
${flag('isAbove')}`;

/** The row tables, and the statistics beside them. */
function rowsStaging(view: View, row: string): TableStaging {
  const { load, put } = rowStaging(view, row);
  return {
    load: `${load}
var nextNorm = 0.0;
var nextDelta = 0.0;
if (tid < M) {
  nextNorm = statistics[2u * nextRow];
  nextDelta = statistics[2u * nextRow + 1u];
}`,
    put: (place) => `${put(place)}
if (tid < M) {
  rowNorm[${place}] = nextNorm;
  rowDelta[${place}] = nextDelta;
}`,
  };
}

/**
 * p and dS of a thread's scores; `top` becomes the largest |dS|. Texts are WGSL
 * of the first key's place in the tables and of what is stored.
 */
const gradient = (
  tile: UnitTile,
  at: string,
  stored: string,
) => `let at = ${at};
  let position = vec4i(${fourOf('keyPosition', 'at')});
  let isSeen = (position >= vec4i(firstSeen)) & (position <= vec4i(lastSeen));
  let exponent = vec4f(${fourOf('scores', 'place')}) * scale - norm;
  let p = select(vec4f(), exp2(min(exponent, vec4f(1.0))), isSeen);
  let dP = vec4f(${fourOf('scores', `${scoreElements(tile)}u + place`)});
  let dS = select(vec4f(), p * (dP - delta) * u.scale, p > vec4f());
  ${stored}`;

const measured = `let size = abs(dS);
  top = max(top, max(max(size.x, size.y), max(size.z, size.w)));`;

const put = (tile: UnitTile, start: number, value: string) =>
  `{ let w = vec4<${tile.element}>(${value});
  ${unroll(4, (e) => `factors[${start}u + place + ${e}u] = w[${e}];`)} }`;

const putGradient = (tile: UnitTile) =>
  put(
    tile,
    layoutOf(tile).gradients,
    `clamp(dS, vec4f(-bound), vec4f(bound)) * (${FULL}.0 / bound)`,
  );

/**
 * Where a gradient is above the bound, a new one, and sums that are scaled to
 * it: rarely, so that they may stay in registers.
 */
const raiseBound = (tile: UnitTile, quad: string, scale: string) =>
  `if (top > bound) { atomicStore(&isAbove[0], 1u); }
  if (workgroupUniformLoad(&isAbove[0]) == 1u) {
    if (tid == 0u) { atomicStore(&isAbove[0], 0u); }
    maxima[tid] = top;
    workgroupBarrier();
    for (var x = 0u; x < ${threadsOf(tile)}u; x++) { top = max(top, maxima[x]); }
    let next = exp2(min(ceil(log2(top)) + ${HEADROOM}, 120.0));
    let fade = bound / next;
    bound = next;
    ${eachQuad(tile, quad)}
    if (turn > 0u) {
      ${scale}
    }
    workgroupBarrier();
  }`;

/** dQ = sum over keys of dS k, dS = p (dO . v - dO . o) scale */
export function unitBackwardQSource(
  shape: AttentionShape,
  view: View,
  tile: UnitTile,
) {
  const { unit, across, isShared, keyWidth, valueWidth } = tile;
  const { q, k, v, dO } = sources(shape);
  const matrices = unitMatrices(unit);
  const { load, multiply } = matrices;
  const layout = layoutOf(tile);
  const pitch = pitchesOf(tile);
  const rows = extentOf(tile);
  const scoreColumns = STEP / across / unit.n;
  const columns = keyWidth / across / unit.n;

  const queries = staging(shape, tile, 'q', q, rows, pitch.key);
  const outputs = staging(shape, tile, 'g', dO, rows, pitch.value);
  const keys = staging(shape, tile, 'k', k, STEP, pitch.key);
  const values = staging(shape, tile, 'v', v, STEP, pitch.value);
  const stage = (load: string, put: string) => (isShared ? '' : load + put);

  /** `name` = rows' factors times those of the tile's keys. */
  const scores = (
    name: string,
    left: string,
    width: number,
    from: string,
    line: number,
    start: number,
  ) => `{
    ${unroll(scoreColumns, (j) => `var ${name}${j} = zero;`)}
    ${unroll(width / unit.k, (p) => unroll(scoreColumns, (j) => `${name}${j} = ${multiply(`${left}${p}`, load('Right', 'factors', `${from} + (across * ${scoreColumns * unit.n}u + ${j * unit.n}u) * ${line}u + ${p * unit.k}u`, true, line), `${name}${j}`)};`))}
    ${unroll(scoreColumns, (j) => matrices.store('scores', `${start}u + down * ${pitch.score}u + across * ${scoreColumns * unit.n}u + ${j * unit.n}u`, `${name}${j}`, pitch.score))}
  }`;
  const quad = (measure: string) =>
    gradient(tile, 'turn % 4u * N + c', `${measure}\n  ${putGradient(tile)}`);
  const own = rowsStaging(view, view.forward.row);
  const later = keyStaging(view, 'base + 2u * N');
  const parts = [
    { name: 'dQ', width: 'D' },
    ...(shape.ropeWidth > 0 ? [{ name: 'dQRope', width: 'DR' }] : []),
  ];
  return {
    threads: threadsOf(tile),
    directives: matrices.directives,
    parameters: matrices.parameters,
    declarations: `${sequenceOf}
${view.declarations}
${memory(tile, 'M', '4 * N')}
${matrices.declarations(['factors'], ['scores'])}
${store(shape, 'storeQ', parts)}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${matrices.start}
${view.forward.range}
${own.load}
${own.put('tid')}
${firstKeyTables(view)}
let down = subgroup / ${across}u * ${unit.m}u;
let across = subgroup % ${across}u;
${factorsOf(shape, tile, 'Left', 'q', queries, q, keyWidth, pitch.key)}
${factorsOf(shape, tile, 'Left', 'g', outputs, dO, valueWidth, pitch.value)}
if (first < end) {
  ${keys.declare}
  ${keys.load('0u')}
  ${keys.put('0u')}
  ${stage(`${values.declare}\n${values.load('0u')}\n`, values.put(`${layout.values}u`))}
}
workgroupBarrier();
let row = tid / ${perRow(tile)}u;
let part = tid % ${perRow(tile)}u;
let firstSeen = rowFirst[row];
let lastSeen = rowLast[row];
let norm = rowNorm[row] * 1.4426950408889634;
let delta = rowDelta[row];
let scale = u.scale * 1.4426950408889634;
var bound = ${LOWEST_BOUND};
// Declared in a loop without a value, sums keep the last round's.
var zero: Sum;
${unroll(columns, (j) => `var d${j} = zero;`)}
var turn = 0u;
for (var base = first; base < end; base += N) {
  // The next keys are on their way while these are multiplied.
  ${later.load}
  ${keys.declare}
  ${keys.load('(turn + 1u) % 4u * N')}
  ${stage(`${values.declare}\n`, values.load('(turn + 1u) % 4u * N'))}
  let keys = turn % 2u * ${STEP * pitch.key}u;
  ${scores('s', 'q', keyWidth, 'keys', pitch.key, 0)}
  ${scores('t', 'g', valueWidth, isShared ? 'keys' : `${layout.values}u`, pitch.value, scoreElements(tile))}
  workgroupBarrier();
  ${keys.put(`(turn + 1u) % 2u * ${STEP * pitch.key}u`)}
  ${stage('', values.put(`${layout.values}u`))}
  ${later.put('(turn + 2u) % 4u * N + tid')}
  var top = 0.0;
  ${eachQuad(tile, quad(measured))}
  ${raiseBound(tile, quad(''), scaleSums(tile, matrices, 'd', columns, 'fade'))}
  ${unroll(
    STEP / unit.k,
    (p) => `{
    let w = ${load('Left', 'factors', `${layout.gradients}u + down * ${pitch.score}u + ${p * unit.k}u`, false, pitch.score)};
    let line = keys + ${p * unit.k * pitch.key}u + across * ${columns * unit.n}u;
    ${unroll(columns, (j) => `d${j} = ${multiply('w', load('Right', 'factors', `line + ${j * unit.n}u`, false, pitch.key), `d${j}`)};`)}
  }`,
  )}
  turn++;
}
${putSums(
  tile,
  matrices,
  'd',
  columns,
  `if (rowIsThere[line] == 1u) { storeQ(rowIndex[line], c, value * (bound / ${FULL}.0)); }`,
)}`,
  };
}

const clear = (tile: UnitTile) =>
  `for (var x = tid; x < ${layoutOf(tile).size}u; x += ${threadsOf(tile)}u) { factors[x] = ${tile.element}(); }
workgroupBarrier();`;

/**
 * Matrices `name` of all channels of a subgroup's rows or keys, in registers:
 * 0 behind the last channel, whatever the other factor has there.
 */
function factorsOf(
  shape: AttentionShape,
  tile: UnitTile,
  kind: 'Left' | 'Right',
  name: string,
  { declare, load, put }: ReturnType<typeof staging>,
  { parts }: Source,
  width: number,
  pitch: number,
): string {
  const { unit } = tile;
  const matrices = unitMatrices(unit);
  const channels = parts.reduce((sum, part) => sum + shape[widthOf(part)], 0);
  return `workgroupBarrier();
${channels < width ? clear(tile) : ''}
{
  ${declare}
  ${load('0u')}
  ${put('0u')}
}
workgroupBarrier();
${unroll(width / unit.k, (p) => `let ${name}${p} = ${matrices.load(kind, 'factors', `down * ${pitch}u + ${p * unit.k}u`, kind === 'Right', pitch)};`)}
workgroupBarrier();`;
}

/**
 * dV = sum over rows of p dO, dK = sum over rows of dS q: one workgroup a tile
 * of keys and part of the rows that see any of them, always in the same order.
 */
export function unitBackwardKVSource(
  shape: AttentionShape,
  view: View,
  keyView: KeyView,
  tile: UnitTile,
) {
  const { unit, across, isShared, keyWidth, valueWidth } = tile;
  const { q, k, v, dO } = sources(shape);
  const matrices = unitMatrices(unit);
  const { load, multiply } = matrices;
  const layout = layoutOf(tile);
  const pitch = pitchesOf(tile);
  const extent = extentOf(tile);
  const scoreRows = STEP / across / unit.m;
  const keyColumns = keyWidth / across / unit.n;
  const valueColumns = valueWidth / across / unit.n;

  const keys = staging(shape, tile, 'k', k, extent, pitch.key);
  const values = staging(shape, tile, 'v', v, extent, pitch.value);
  const queries = staging(shape, tile, 'q', q, STEP, pitch.key);
  const outputs = staging(shape, tile, 'g', dO, STEP, pitch.value);

  /** `name` = the rows' factors times those of the subgroup's keys. */
  const scores = (
    name: string,
    right: string,
    width: number,
    from: number,
    line: number,
    start: number,
  ) => `{
    ${unroll(scoreRows, (i) => `var ${name}${i} = zero;`)}
    ${unroll(width / unit.k, (p) => unroll(scoreRows, (i) => `${name}${i} = ${multiply(load('Left', 'factors', `${from}u + (across * ${scoreRows * unit.m}u + ${i * unit.m}u) * ${line}u + ${p * unit.k}u`, false, line), `${right}${p}`, `${name}${i}`)};`))}
    ${unroll(scoreRows, (i) => matrices.store('scores', `${start}u + (across * ${scoreRows * unit.m}u + ${i * unit.m}u) * ${pitch.score}u + down`, `${name}${i}`, pitch.score))}
  }`;
  /** Sums += weights, rows by keys, transposed, times the rows' factors. */
  const accumulate = (
    name: string,
    columns: number,
    weights: number,
    from: number,
    line: number,
  ) =>
    unroll(
      STEP / unit.k,
      (p) => `{
    let w = ${load('Left', 'factors', `${weights + p * unit.k * pitch.score}u + down`, true, pitch.score)};
    let line = ${from + p * unit.k * line}u + across * ${columns * unit.n}u;
    ${unroll(columns, (j) => `${name}${j} = ${multiply('w', load('Right', 'factors', `line + ${j * unit.n}u`, false, line), `${name}${j}`)};`)}
  }`,
    );
  const quad = (measure: string) =>
    gradient(
      tile,
      'c',
      `${measure}
  ${put(tile, layout.weights, `p * ${WEIGHT}.0`)}
  ${putGradient(tile)}`,
    );
  const rowsFrom = (rho: string) =>
    rowsStaging(view, `let rho = ${rho} + tid;\n  ${keyView.row}`);
  const [now, next, later] = [
    rowsFrom('firstRow'),
    rowsFrom('firstRow + M'),
    rowsFrom('rho0 + 2u * M'),
  ];
  const channels = {
    K0: 0,
    K1: shape.width + shape.ropeWidth,
    V0: 0,
    V1: shape.valueWidth,
  };
  const place = keyView.parts
    ? '(group.y * u.slots + slot) * N + line'
    : 'keyRow[line] * GK + keyHead';
  return {
    threads: threadsOf(tile),
    directives: matrices.directives,
    parameters: matrices.parameters,
    declarations: `${sequenceOf}
${keyView.declarations}
${memory(tile, '4 * M', 'N')}
${matrices.declarations(['factors'], ['scores'])}
${keyStores(shape, keyView, channels)}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${matrices.start}
${keyView.range}
if (firstKey >= endKey) { return; }
if (tid < N) {
  let position = firstKey + tid;
  keyPosition[tid] = select(-1, i32(position), position < endKey);
  keyRow[tid] = ${view.keyStart} + min(position, endKey - 1u);
}
if (firstRow < endRow) {
  { ${now.load}\n${now.put('tid')} }
  { ${next.load}\n${next.put('M + tid')} }
}
let down = subgroup / ${across}u * ${unit.n}u;
let across = subgroup % ${across}u;
${factorsOf(shape, tile, 'Right', 'k', keys, k, keyWidth, pitch.key)}
${
  isShared
    ? // Behind the values, keys have other channels.
      clear(tile)
    : factorsOf(shape, tile, 'Right', 'v', values, v, valueWidth, pitch.value)
}
if (firstRow < endRow) {
  ${queries.declare}
  ${queries.load('0u')}
  ${queries.put('0u')}
  ${outputs.declare}
  ${outputs.load('0u')}
  ${outputs.put(`${layout.values}u`)}
}
workgroupBarrier();
let row = tid / ${perRow(tile)}u;
let part = tid % ${perRow(tile)}u;
let scale = u.scale * 1.4426950408889634;
var bound = ${LOWEST_BOUND};
// Declared in a loop without a value, sums keep the last round's.
var zero: Sum;
${unroll(keyColumns, (j) => `var a${j} = zero;`)}
${unroll(valueColumns, (j) => `var b${j} = zero;`)}
var turn = 0u;
for (var rho0 = firstRow; rho0 < endRow; rho0 += M) {
  ${later.load}
  ${scores('s', 'k', keyWidth, 0, pitch.key, 0)}
  ${scores('t', isShared ? 'k' : 'v', valueWidth, layout.values, pitch.value, scoreElements(tile))}
  ${later.put('(turn + 2u) % 4u * M + tid')}
  workgroupBarrier();
  let own = turn % 4u * M + row;
  let firstSeen = rowFirst[own];
  let lastSeen = rowLast[own];
  let norm = rowNorm[own] * 1.4426950408889634;
  let delta = rowDelta[own];
  var top = 0.0;
  ${eachQuad(tile, quad(measured))}
  ${raiseBound(tile, quad(''), scaleSums(tile, matrices, 'a', keyColumns, 'fade'))}
  // The next rows are on their way while these are multiplied.
  ${queries.declare}
  ${queries.load('(turn + 1u) % 4u * M')}
  ${outputs.declare}
  ${outputs.load('(turn + 1u) % 4u * M')}
  ${accumulate('b', valueColumns, layout.weights, layout.values, pitch.value)}
  ${accumulate('a', keyColumns, layout.gradients, 0, pitch.key)}
  workgroupBarrier();
  ${queries.put('0u')}
  ${outputs.put(`${layout.values}u`)}
  workgroupBarrier();
  turn++;
}
${putSums(
  tile,
  matrices,
  'a',
  keyColumns,
  `if (keyPosition[line] >= 0) { storeK(${place}, c, value * (bound / ${FULL}.0)); }`,
)}
${putSums(
  tile,
  matrices,
  'b',
  valueColumns,
  `if (keyPosition[line] >= 0) { storeV(${place}, c, value / ${WEIGHT}.0); }`,
)}`,
  };
}
