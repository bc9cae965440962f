/** The forward pass over a tile of rows by matrix units, in WGSL. */
import { type AttentionShape, sources, store } from './attention-products';
import {
  eachQuad,
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
  scoresOf,
  staging,
  threadsOf,
  type UnitTile,
} from './attention-unit';
import { rowTable, type View } from './attention-view';
import { sequenceOf, unroll } from './context';
import { unitMatrices } from './unit-matrices';

/** Large and negative: what no score is, and no infinity either. */
const LOWEST = '-1e30';
/**
 * Probabilities are stored in f16 as powers of two above a row's reference. It
 * lies HEADROOM under the largest score when it is set, and is set anew when
 * a score is LIMIT above it: rarely, so that sums may stay in registers.
 */
const HEADROOM = '6.0';
const LIMIT = '15.0';

/** o = softmax(scores) v, online */
export function unitForwardSource(
  shape: AttentionShape,
  view: View,
  tile: UnitTile,
) {
  const { unit, across, element, isShared, keyWidth, valueWidth } = tile;
  const { q, k, v } = sources(shape);
  const matrices = unitMatrices(unit);
  const { load, multiply } = matrices;
  const threads = threadsOf(tile);
  const layout = layoutOf(tile);
  const pitch = pitchesOf(tile);
  const isPadded = keyWidth > shape.width + shape.ropeWidth;

  const depths = keyWidth / unit.k;
  const scoreColumns = STEP / across / unit.n;
  const columns = valueWidth / across / unit.n;

  const queries = staging(shape, tile, 'q', q, scoresOf(tile).rows, pitch.key);
  const keys = staging(shape, tile, 'k', k, STEP, pitch.key);
  const values = staging(shape, tile, 'v', v, STEP, pitch.value);

  const later = keyStaging(view, 'base + 2u * N');

  const score = `let at = turn % 4u * N + c;
  let position = vec4i(${fourOf('keyPosition', 'at')});
  let isSeen = (position >= vec4i(firstSeen)) & (position <= vec4i(lastSeen));
  let score = vec4f(${fourOf('scores', 'place')}) * scale;`;
  const probability = `let p = select(vec4f(), exp2(min(score - reference, vec4f(${LIMIT}))), isSeen);
  added += p.x + p.y + p.z + p.w;
  let w = vec4<${element}>(p);
  ${unroll(4, (e) => `factors[${layout.weights}u + place + ${e}u] = w[${e}];`)}`;

  return {
    threads,
    directives: matrices.directives,
    parameters: matrices.parameters,
    declarations: `${sequenceOf}
${view.declarations}
// Row q H + head of each tile row, and the key positions that it sees.
var<workgroup> rowIndex: array<u32, M>;
var<workgroup> rowIsThere: array<u32, M>;
var<workgroup> rowFirst: array<i32, M>;
var<workgroup> rowLast: array<i32, M>;
// Key position of each key of four tiles, -1 for none; its row.
var<workgroup> keyPosition: array<i32, 4 * N>;
var<workgroup> keyRow: array<u32, 4 * N>;
var<workgroup> factors: array<${element}, ${layout.size}>;
var<workgroup> scores: array<f32, ${scoreElements(tile)}>;
var<workgroup> partial: array<f32, ${threads}>;
var<workgroup> rowFactor: array<f32, M>;
${flag('isAbove')}
${matrices.declarations(['factors'], ['scores'])}
${store(shape, 'storeO', [{ name: 'o', width: 'DV' }])}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${matrices.start}
${view.forward.range}
${rowTable(view, view.forward.row)}
${firstKeyTables(view)}
${isPadded ? `for (var x = tid; x < ${layout.size}u; x += ${threads}u) { factors[x] = ${element}(); }` : ''}
workgroupBarrier();
{
  ${queries.declare}
  ${queries.load('0u')}
  ${queries.put('0u')}
}
workgroupBarrier();
let down = subgroup / ${across}u * ${unit.m}u;
let across = subgroup % ${across}u;
${unroll(depths, (p) => `let q${p} = ${load('Left', 'factors', `down * ${pitch.key}u + ${p * unit.k}u`, false, pitch.key)};`)}
workgroupBarrier();
if (first < end) {
  ${keys.declare}
  ${keys.load('0u')}
  ${keys.put('0u')}
}
workgroupBarrier();
let row = tid / ${perRow(tile)}u;
let part = tid % ${perRow(tile)}u;
let firstSeen = rowFirst[row];
let lastSeen = rowLast[row];
let scale = u.scale * 1.4426950408889634;
var reference = ${LOWEST};
var sum = 0.0;
// Declared in a loop without a value, sums keep the last round's.
var zero: Sum;
${unroll(columns, (j) => `var o${j} = zero;`)}
var turn = 0u;
for (var base = first; base < end; base += N) {
  // The next keys are on their way while these are multiplied.
  ${later.load}
  ${keys.declare}
  ${keys.load('(turn + 1u) % 4u * N')}
  ${isShared ? '' : `${values.declare}\n${values.load('turn % 4u * N')}`}
  let keys = ${isShared ? `turn % 2u * ${STEP * pitch.key}u` : '0u'};
  {
    ${unroll(scoreColumns, (j) => `var s${j} = zero;`)}
    ${unroll(
      depths,
      (p) =>
        `{ ${unroll(scoreColumns, (j) => `let k${j} = ${load('Right', 'factors', `keys + (across * ${scoreColumns * unit.n}u + ${j * unit.n}u) * ${pitch.key}u + ${p * unit.k}u`, true, pitch.key)};`)}
    ${unroll(scoreColumns, (j) => `s${j} = ${multiply(`q${p}`, `k${j}`, `s${j}`)};`)} }`,
    )}
    ${unroll(scoreColumns, (j) => matrices.store('scores', `down * ${pitch.score}u + across * ${scoreColumns * unit.n}u + ${j * unit.n}u`, `s${j}`, pitch.score))}
  }
  workgroupBarrier();
  ${keys.put(isShared ? `(turn + 1u) % 2u * ${STEP * pitch.key}u` : '0u')}
  ${isShared ? '' : values.put(`${layout.values}u`)}
  ${later.put('(turn + 2u) % 4u * N + tid')}
  var top = ${LOWEST};
  var added = 0.0;
  ${eachQuad(
    tile,
    `${score}
  let seen = select(vec4f(${LOWEST}), score, isSeen);
  top = max(top, max(max(seen.x, seen.y), max(seen.z, seen.w)));
  ${probability}`,
  )}
  if (top > reference + ${LIMIT}) { atomicStore(&isAbove[0], 1u); }
  if (workgroupUniformLoad(&isAbove[0]) == 1u) {
    if (tid == 0u) { atomicStore(&isAbove[0], 0u); }
    partial[tid] = top;
    workgroupBarrier();
    for (var x = 0u; x < ${perRow(tile)}u; x++) { top = max(top, partial[row * ${perRow(tile)}u + x]); }
    let next = select(reference, top - ${HEADROOM}, top > reference + ${LIMIT});
    let fade = exp2(max(reference - next, -126.0));
    reference = next;
    sum *= fade;
    added = 0.0;
    ${eachQuad(tile, `${score}\n  ${probability}`)}
    if (part == 0u) { rowFactor[row] = fade; }
    if (base > first) {
      ${scaleSums(tile, matrices, 'o', columns, 'rowFactor[line]')}
    }
    workgroupBarrier();
  }
  sum += added;
  ${unroll(
    STEP / unit.k,
    (p) => `{
    let w = ${load('Left', 'factors', `${layout.weights}u + down * ${pitch.score}u + ${p * unit.k}u`, false, pitch.score)};
    let values = ${isShared ? 'keys' : `${layout.values}u`} + ${p * unit.k * pitch.value}u + across * ${columns * unit.n}u;
    ${unroll(columns, (j) => `o${j} = ${multiply('w', load('Right', 'factors', `values + ${j * unit.n}u`, false, pitch.value), `o${j}`)};`)}
  }`,
  )}
  turn++;
}
partial[tid] = sum;
workgroupBarrier();
if (part == 0u) {
  var total = 0.0;
  for (var x = 0u; x < ${perRow(tile)}u; x++) { total += partial[tid + x]; }
  let isEmpty = total <= 0.0;
  rowFactor[row] = select(1.0 / max(total, 1e-37), 0.0, isEmpty);
  if (rowIsThere[row] == 1u) {
    let norm = (reference + log2(max(total, 1e-37))) * 0.6931471805599453;
    lse[rowIndex[row]] = select(bitcast<u32>(norm), 0xff800000u, isEmpty);
  }
}
${putSums(
  tile,
  matrices,
  'o',
  columns,
  'if (rowIsThere[line] == 1u) { storeO(rowIndex[line], c, value * rowFactor[line]); }',
)}`,
  };
}
