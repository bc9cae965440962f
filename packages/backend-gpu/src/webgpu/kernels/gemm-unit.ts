import type { MatrixUnit } from '../matrix-unit';
import { type KernelContext, unroll } from './context';
import type { Gemm } from './gemm';
import {
  eachRun,
  indexText,
  isAlongInner,
  type Operand,
  stepsText,
} from './gemm-operand';
import {
  isWide,
  operandBindings,
  operandsOf,
  outputIndex,
  resultBinding,
  type Split,
  tiledLaunch,
  tileOrigin,
} from './gemm-tile';
import { unitMatrices } from './unit-matrices';

/** A tile of products by the subgroups' matrix units. */
export interface UnitTile {
  readonly kind: 'unit';
  /** Rows and columns of a workgroup's tile, and the depth of one step. */
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Rows and columns of a subgroup's part. */
  readonly sm: number;
  readonly sn: number;
}

/**
 * f16 tiles in workgroup memory, multiplied by subgroups into f32 sums that
 * stay in registers.
 */
export function unitProduct(
  context: KernelContext,
  call: Gemm,
  unit: MatrixUnit,
  tile: UnitTile,
  split: Split,
): void {
  context.run({
    ...tiledLaunch(call, tile, split),
    kernel: 'gemm-unit',
    bindings: { ...operandBindings(call), y: resultBinding(call) },
    source: () => source(call, unit, tile),
  });
}

function source(call: Gemm, unit: MatrixUnit, tile: UnitTile) {
  const { m, n, k, sm, sn } = tile;
  const subgroupsX = n / sn;
  const subgroups = (m / sm) * subgroupsX;
  const threads = subgroups * unit.subgroupSize;
  const [a, b] = operandsOf(call, tile, threads, 'f16');
  const matrices = unitMatrices(unit);
  const sums = (text: (i: number, j: number) => string) =>
    unroll(sm / unit.m, (i) => unroll(sn / unit.n, (j) => text(i, j)));
  // Element (outer, inner) of a tile, for matrices that start there.
  const loadText = (
    x: Operand,
    type: 'Left' | 'Right',
    outer: string,
    inner: string,
  ) => {
    const along = isAlongInner(x);
    const at = along
      ? `(${outer}) * ${pitch(x)}u + ${inner}`
      : `(${inner}) * ${pitch(x)}u + ${outer}`;
    const columnMajor = along === (x.name === 'b');
    return matrices.load(type, `tile_${x.name}`, at, columnMajor, pitch(x));
  };
  return {
    threads,
    directives: matrices.directives,
    parameters: matrices.parameters,
    declarations: `${matrices.declarations(['tile_a', 'tile_b'], ['tile_y'])}
var<workgroup> tile_a: array<f16, ${lines(a) * pitch(a)}>;
var<workgroup> tile_b: array<f16, ${lines(b) * pitch(b)}>;
var<workgroup> tile_y: array<f32, ${subgroups * unit.m * unit.n}>;
${indexText(a)}
${indexText(b)}
${outputIndex(call.layouts)}`,
    body: `${matrices.start}
${tileOrigin}
let sx = subgroup % ${subgroupsX}u * ${sn}u;
let sy = subgroup / ${subgroupsX}u * ${sm}u;
${sums((i, j) => `var sum${i}_${j}: Sum;`)}
${stepsText(
  [a, b],
  stageText,
  unroll(
    k / unit.k,
    (p) => `{
${unroll(sm / unit.m, (i) => `let left${i} = ${loadText(a, 'Left', `sy + ${i * unit.m}u`, `${p * unit.k}u`)};`)}
${unroll(sn / unit.n, (j) => `let right${j} = ${loadText(b, 'Right', `sx + ${j * unit.n}u`, `${p * unit.k}u`)};`)}
${sums((i, j) => `sum${i}_${j} = ${matrices.multiply(`left${i}`, `right${j}`, `sum${i}_${j}`)};`)}
}`,
  ),
)}
${sums((i, j) => storeText(call, `sum${i}_${j}`, i, j, unit, tile))}`,
  };
}

/** f16 in a line of a tile; 16 bytes more, so that lines use other banks. */
function pitch(x: Operand): number {
  return (isAlongInner(x) ? x.depth : x.extent) + 8;
}

/** Lines of a tile, as they lie in memory. */
function lines(x: Operand): number {
  return isAlongInner(x) ? x.extent : x.depth;
}

function stageText(x: Operand): string {
  return eachRun(x, (i) => {
    const id = `${x.name}${i}`;
    const at = `major_${id} * ${pitch(x)}u + minor_${id}`;
    return unroll(
      4,
      (p) => `tile_${x.name}[${at} + ${p}u] = next_${id}[${p}];`,
    );
  });
}

/**
 * Matrix (i, j) of every subgroup at once, through workgroup memory: only
 * there can its elements be rounded and left out past the edges.
 */
function storeText(
  { layouts }: Gemm,
  sum: string,
  i: number,
  j: number,
  unit: MatrixUnit,
  { m, n, sm, sn }: UnitTile,
): string {
  const subgroupsX = n / sn;
  const subgroups = (m / sm) * subgroupsX;
  const elements = unit.m * unit.n;
  const width = isWide(layouts.y) ? 4 : 1;
  const values = Array.from({ length: width }, (_, p) => `tile_y[e + ${p}u]`);
  const value = width === 4 ? `vec4f(${values.join(', ')})` : values.join();
  return `workgroupBarrier();
${unitMatrices(unit).store('tile_y', `subgroup * ${elements}u`, sum, unit.n)}
workgroupBarrier();
for (var e = tid * ${width}u; e < ${subgroups * elements}u; e += ${subgroups * unit.subgroupSize * width}u) {
  let s = e / ${elements}u;
  let row = origin_a + s / ${subgroupsX}u * ${sm}u + ${i * unit.m}u + e % ${elements}u / ${unit.n}u;
  let column = origin_b + s % ${subgroupsX}u * ${sn}u + ${j * unit.n}u + e % ${unit.n}u;
  if (row < u.rows && column < u.columns) {
    y[y_index(part, batch, row, column) / ${width}u] = t_y(${value});
  }
}`;
}
