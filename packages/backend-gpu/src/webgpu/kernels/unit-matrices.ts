import type { MatrixUnit } from '../matrix-unit';
import { unroll } from './context';

/** The left and right factor of a product, and a sum of products. */
type Kind = 'Left' | 'Right' | 'Sum';

/**
 * Products of a subgroup's matrices, as WGSL. `Left`, `Right` and `Sum` are
 * types, `subgroup` is the subgroup's number in the workgroup.
 */
export interface UnitMatrices {
  readonly directives: readonly string[];
  readonly parameters: readonly string[];
  /** Types, and functions for factors and sums in these workgroup arrays. */
  declarations(factors: readonly string[], sums: readonly string[]): string;
  /** Begins `main`. */
  readonly start: string;
  /** The matrix whose first element stands at `at`, lines `pitch` apart. */
  load(
    kind: Kind,
    array: string,
    at: string,
    isColumnMajor: boolean,
    pitch: number,
  ): string;
  /** `left right + sum` */
  multiply(left: string, right: string, sum: string): string;
  /** Row by row. */
  store(array: string, at: string, sum: string, pitch: number): string;
}

export function unitMatrices(unit: MatrixUnit): UnitMatrices {
  return unit.isEmulated ? emulated(unit) : subgroupMatrices(unit);
}

const subgroupMatrices = ({ m, n, k }: MatrixUnit): UnitMatrices => ({
  directives: [
    'enable f16;',
    'enable subgroups;',
    'enable chromium_experimental_subgroup_matrix;',
    // Its analysis does not know that loop bounds are uniforms.
    'diagnostic(off, chromium.subgroup_matrix_uniformity);',
  ],
  parameters: ['@builtin(subgroup_id) subgroup: u32'],
  declarations: () => `
alias Left = subgroup_matrix_left<f16, ${k}, ${m}>;
alias Right = subgroup_matrix_right<f16, ${n}, ${k}>;
alias Sum = subgroup_matrix_result<f32, ${n}, ${m}>;`,
  start: '',
  load: (kind, array, at, isColumnMajor, pitch) =>
    `subgroupMatrixLoad<${kind}>(&${array}, ${at}, ${isColumnMajor}, ${pitch}u)`,
  multiply: (left, right, sum) =>
    `subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${sum})`,
  store: (array, at, sum, pitch) =>
    `subgroupMatrixStore(&${array}, ${at}, ${sum}, false, ${pitch}u);`,
});

/**
 * The same in plain code, for devices without: a thread has some neighbours of
 * one row of the sum, and of the factors all that they are made of.
 */
function emulated({ m, n, k, subgroupSize }: MatrixUnit): UnitMatrices {
  const own = (m * n) / subgroupSize;
  const load = (kind: Kind, array: string, count: number, place: string) => `
fn load${kind}_${array}(at: u32, isColumnMajor: bool, pitch: u32) -> ${kind} {
  var x: ${kind};
  for (var i = 0u; i < ${count}u; i++) {
    ${place}
    x[i] = f32(${array}[at + select(row * pitch + column, column * pitch + row, isColumnMajor)]);
  }
  return x;
}`;
  const row = `let row = lane * ${own}u / ${n}u;`;
  const column = (i: string) => `let column = lane * ${own}u % ${n}u + ${i};`;
  return {
    directives: [],
    parameters: [],
    declarations: (factors, sums) => `
alias Left = array<f32, ${k}>;
alias Right = array<f32, ${k * own}>;
alias Sum = array<f32, ${own}>;
var<private> lane: u32;
${unroll(factors.length, (i) => {
  const array = factors[i] ?? '';
  return `${load('Left', array, k, `${row} let column = i;`)}
${load('Right', array, k * own, `let row = i / ${own}u; ${column(`i % ${own}u`)}`)}`;
})}
${unroll(sums.length, (i) => {
  const array = sums[i] ?? '';
  return `${load('Sum', array, own, `${row} ${column('i')}`)}
fn storeSum_${array}(at: u32, sum: Sum, pitch: u32) {
  var x = sum;
  for (var i = 0u; i < ${own}u; i++) {
    ${row} ${column('i')}
    ${array}[at + row * pitch + column] = x[i];
  }
}`;
})}
fn multiplyAdd(left: Left, right: Right, sum: Sum) -> Sum {
  var x = left;
  var y = right;
  var z = sum;
  for (var p = 0u; p < ${k}u; p++) {
    for (var i = 0u; i < ${own}u; i++) { z[i] += x[p] * y[p * ${own}u + i]; }
  }
  return z;
}`,
    start: `let subgroup = tid / ${subgroupSize}u;
lane = tid % ${subgroupSize}u;`,
    load: (kind, array, at, isColumnMajor, pitch) =>
      `load${kind}_${array}(${at}, ${isColumnMajor}, ${pitch}u)`,
    multiply: (left, right, sum) => `multiplyAdd(${left}, ${right}, ${sum})`,
    store: (array, at, sum, pitch) =>
      `storeSum_${array}(${at}, ${sum}, ${pitch}u);`,
  };
}
