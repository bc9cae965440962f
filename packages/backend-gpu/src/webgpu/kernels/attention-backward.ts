/** The backward passes: over tiles of rows for dQ, of keys for dK and dV. */
import {
  type AttentionShape,
  accumulate,
  product,
  quadOf,
  registers,
  rowOf,
  sources,
  store,
  type Tile,
  tables,
  threadPlace,
  threadsOf,
  times,
  weightsOf,
  workspace,
} from './attention-products';
import { type KeyView, keyTable, rowTable, type View } from './attention-view';
import { sequenceOf, unroll } from './context';

/** Channels of dK (rotary ones behind) and dV that one pass sums. */
export interface Channels extends Record<string, number> {
  readonly K0: number;
  readonly K1: number;
  readonly V0: number;
  readonly V1: number;
}

/**
 * `p` and `dS` of a row and a key of the tile, 0 where it is not seen;
 * `statistics` hold a row's LSE and `dO . o`.
 */
const scoreGradient = `
fn isSeen(row: u32, n: u32) -> bool {
  let position = keyPosition[n];
  return position >= rowFirst[row] && position <= rowLast[row];
}
fn probability(row: u32, n: u32, score: f32) -> f32 {
  let p = exp(min(score * u.scale - statistics[2u * rowIndex[row]], 80.0));
  return select(0.0, p, isSeen(row, n));
}
fn scoreGradient(row: u32, p: f32, dP: f32) -> f32 {
  let dS = p * (dP - statistics[2u * rowIndex[row] + 1u]) * u.scale;
  return select(0.0, dS, p > 0.0);
}`;

const four = (name: string, i: number) =>
  `vec4f(${[0, 1, 2, 3].map((j) => `${name}${i}_${j}`).join(', ')})`;

/** dQ = sum over keys of dS k, dS = p (dO . v - dO . o) scale */
export function backwardQSource(shape: AttentionShape, view: View, tile: Tile) {
  const { width, ropeWidth } = shape;
  const { perThread } = tile;
  const all = width + ropeWidth;
  const { q, k, v, dO } = sources(shape);
  const columns = registers(all);
  const parts = [
    { name: 'dQ', width: 'D' },
    ...(ropeWidth > 0 ? [{ name: 'dQRope', width: 'DR' }] : []),
  ];
  return {
    threads: threadsOf(tile),
    declarations: `${sequenceOf}
${view.declarations}
${tables}
${scoreGradient}
${workspace(tile, all)}
${store(shape, 'storeQ', parts)}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${threadPlace}
${view.forward.range}
${rowTable(view, view.forward.row)}
${times([perThread, columns], (i, r) => `var d${i}_${r} = vec4f();`)}
for (var base = first; base < end; base += N) {
  ${keyTable(view)}
  ${times([perThread, 4], (i, j) => `var s${i}_${j} = 0.0;`)}
  ${product(shape, 's', tile, q, k)}
  ${times([perThread, 4], (i, j) => `s${i}_${j} = probability(${rowOf(tile, i)}, 4u * tx + ${j}u, s${i}_${j});`)}
  ${times([perThread, 4], (i, j) => `var g${i}_${j} = 0.0;`)}
  ${product(shape, 'g', tile, dO, v)}
  ${times([perThread, 4], (i, j) => `s${i}_${j} = scoreGradient(${rowOf(tile, i)}, s${i}_${j}, g${i}_${j});`)}
  ${unroll(perThread, (i) => `${weightsOf(rowOf(tile, i))} = ${four('s', i)};`)}
  ${accumulate(shape, 'd', tile, k, [0, all])}
}
workgroupBarrier();
${unroll(
  perThread,
  (i) => `if (rowIsThere[${rowOf(tile, i)}] == 1u) {
  let at = rowIndex[${rowOf(tile, i)}];
  ${unroll(columns, (r) => `storeQ(at, ${quadOf(0, r)}, d${i}_${r});`)}
}`,
)}`,
  };
}

/**
 * dV = sum over rows of p dO, dK = sum over rows of dS q: one workgroup a tile
 * of keys and part of the rows that see any of them, always in the same order.
 */
export function backwardKVSource(
  shape: AttentionShape,
  view: View,
  keyView: KeyView,
  tile: Tile,
  { K0, K1, V0, V1 }: Channels,
) {
  const { perThread } = tile;
  const { q, k, v, dO } = sources(shape);
  const hasK = K1 > K0;
  const hasV = V1 > V0;
  const kRegisters = hasK ? registers(K1 - K0) : 0;
  const vRegisters = hasV ? registers(V1 - V0) : 0;
  const each = (text: (i: number, j: number) => string) =>
    times([perThread, 4], text);
  const zero = (name: string, count: number) =>
    times([perThread, count], (i, r) => `var ${name}${i}_${r} = vec4f();`);
  // Rows are columns of this tile, its keys are rows.
  const row = (j: number) => `4u * tx + ${j}u`;
  const put = (name: string) => `
  ${unroll(perThread, (i) => `${weightsOf(rowOf(tile, i))} = ${four(name, i)};`)}`;
  return {
    threads: threadsOf(tile),
    declarations: `${sequenceOf}
${keyView.declarations}
${tables}
${scoreGradient}
${workspace(tile, Math.max(K1 - K0, V1 - V0))}
${keyStores(shape, keyView, { K0, K1, V0, V1 })}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${threadPlace}
${keyView.range}
if (firstKey >= endKey) { return; }
if (tid < N) {
  let position = firstKey + tid;
  keyPosition[tid] = select(-1, i32(position), position < endKey);
  keyRow[tid] = ${view.keyStart} + min(position, endKey - 1u);
}
${zero('k', kRegisters)}
${zero('v', vRegisters)}
for (var rho0 = firstRow; rho0 < endRow; rho0 += M) {
  workgroupBarrier();
  ${rowTable(view, `let rho = rho0 + tid;\n  ${keyView.row}`)}
  workgroupBarrier();
  ${each((i, j) => `var s${i}_${j} = 0.0;`)}
  ${product(shape, 's', tile, k, q)}
  ${each((i, j) => `s${i}_${j} = probability(${row(j)}, ${rowOf(tile, i)}, s${i}_${j});`)}
  ${hasV ? `${put('s')}\n${accumulate(shape, 'v', tile, dO, [V0, V1])}` : ''}
  ${
    hasK
      ? `${each((i, j) => `var g${i}_${j} = 0.0;`)}
  ${product(shape, 'g', tile, v, dO)}
  ${each((i, j) => `s${i}_${j} = scoreGradient(${row(j)}, s${i}_${j}, g${i}_${j});`)}
  ${put('s')}
  ${accumulate(shape, 'k', tile, q, [K0, K1])}`
      : ''
  }
}
workgroupBarrier();
${unroll(
  perThread,
  (i) => `{
  let n = ${rowOf(tile, i)};
  if (keyPosition[n] >= 0) {
    let at = ${keyView.parts ? '(group.y * u.slots + slot) * N + n' : 'keyRow[n] * GK + keyHead'};
    ${unroll(kRegisters, (r) => `if (4u * ${quadOf(K0, r)} < ${K1}u) { storeK(at, ${quadOf(K0, r)}, k${i}_${r}); }`)}
    ${unroll(vRegisters, (r) => `if (4u * ${quadOf(V0, r)} < ${V1}u) { storeV(at, ${quadOf(V0, r)}, v${i}_${r}); }`)}
  }
}`,
)}`,
  };
}

/** `storeK` and `storeV`: to the gradients, or to a slot of `partial`. */
export function keyStores(
  shape: AttentionShape,
  { parts }: KeyView,
  { K0, K1, V0, V1 }: Channels,
): string {
  const pitch = 'D + DR + DV';
  const name = 'partial';
  const key = parts
    ? [{ name, width: 'D + DR', pitch }]
    : [
        ...(K0 < shape.width ? [{ name: 'dK', width: 'D' }] : []),
        ...(K1 > shape.width ? [{ name: 'dKRope', width: 'DR' }] : []),
      ];
  const value = parts
    ? [{ name, width: 'DV', pitch, start: 'D + DR' }]
    : [{ name: 'dV', width: 'DV' }];
  const isBehind = !parts && K0 >= shape.width;
  return `${K1 > K0 ? store(shape, 'storeK', key, isBehind ? 'D' : '0u') : ''}
${V1 > V0 ? store(shape, 'storeV', value) : ''}`;
}
