import { unroll } from './context';
import type { Gemm } from './gemm';

/** An operand of a tiled product, as a workgroup's threads read it. */
export interface Operand {
  readonly name: 'a' | 'b';
  readonly layout: Gemm['layouts']['a'];
  /** Rows of a, or columns of b, in a tile. */
  readonly extent: number;
  /** Inner extent of a step. */
  readonly depth: number;
  readonly threads: number;
  /** Steps end with the inner index, none goes past it. */
  readonly whole: boolean;
  /** Of the four values that are read at once. */
  readonly type: 'f32' | 'f16';
}

/** Neighbours in memory lie along the inner index, not across it. */
export function isAlongInner({ name, layout }: Operand): boolean {
  return layout.contiguous === (name === 'a' ? 'row' : 'column');
}

/** Runs of four in a line of the tile as it lies in memory. */
function runs(operand: Operand): number {
  return (isAlongInner(operand) ? operand.depth : operand.extent) / 4;
}

const limitOf = ({ name }: Operand) => (name === 'a' ? 'u.rows' : 'u.columns');

/**
 * `load_a(batch, row, inner)`, `load_b(batch, column, inner)`: four elements
 * from there on, along the inner index or across it; 0 past the inner edge.
 * Past the outer edge lies what the result has no element for.
 */
export function loaderText(operand: Operand): string {
  const { name, layout, type, whole } = operand;
  const [row, column] = name === 'a' ? ['outer', 'inner'] : ['inner', 'outer'];
  const read = `vec4<${type}>(${name}[${name}_index(batch, outer, inner) / 4u])`;
  const body = !layout.aligned
    ? elementsText(operand)
    : whole
      ? `return ${read};`
      : `if (inner < u.inner) { return ${read}; }
  return vec4<${type}>();`;
  return `
fn ${name}_index(batch: u32, outer: u32, inner: u32) -> u32 {
  let row = ${row};
  let column = ${column};
  return ${layout.index};
}
fn load_${name}(batch: u32, outer: u32, inner: u32) -> vec4<${type}> {
  ${body}
}`;
}

function elementsText(operand: Operand): string {
  const { name, type } = operand;
  const limit = limitOf(operand);
  const along = isAlongInner(operand);
  const text = (p: number) => {
    const [at, isInside] = along
      ? [`outer, inner + ${p}u`, `inner + ${p}u < u.inner`]
      : [`outer + ${p}u, inner`, `outer + ${p}u < ${limit} && inner < u.inner`];
    return `if (${isInside}) { four[${p}] = ${type}(${name}[${name}_index(batch, ${at})]); }`;
  };
  return `var four = vec4<${type}>();
${unroll(4, text)}
  return four;`;
}

/**
 * For each run that a thread reads: its values are `next_a0`, …, and it stands
 * in line `major_a0` of the tile from element `minor_a0` on. Where the tile is
 * over the outer edge, the last run before it is read again: no check is left
 * for the loop.
 */
function runsText(operand: Operand): string {
  const { name, threads, type, layout } = operand;
  const along = isAlongInner(operand);
  const last = along || !layout.aligned ? 1 : 4;
  return eachRun(operand, (i) => {
    const id = `${name}${i}`;
    const [outer, inner] = along ? ['major', 'minor'] : ['minor', 'major'];
    return `var next_${id} = vec4<${type}>();
let major_${id} = (tid + ${i * threads}u) / ${runs(operand)}u;
let minor_${id} = (tid + ${i * threads}u) % ${runs(operand)}u * 4u;
let outer_${id} = min(origin_${name} + ${outer}_${id}, ${limitOf(operand)} - ${last}u);
let inner_${id} = ${inner}_${id};`;
  });
}

/** Reads the runs of the step at `base` of the tile at `origin_a`. */
function fetchText(operand: Operand): string {
  const { name } = operand;
  return eachRun(
    operand,
    (i) =>
      `next_${name}${i} = load_${name}(batch, outer_${name}${i}, base + inner_${name}${i});`,
  );
}

/**
 * The loop over the inner index. While one step is multiplied, the next is on
 * its way from memory into registers.
 */
export function stepsText(
  operands: readonly Operand[],
  stage: (operand: Operand) => string,
  multiply: string,
): string {
  const all = (text: (operand: Operand) => string) =>
    operands.map(text).join('\n');
  return `${all(runsText)}
${all(fetchText)}
loop {
${all(stage)}
  workgroupBarrier();
  base += TILE_K;
  let more = base < end;
  if (more) {
${all(fetchText)}
  }
${multiply}
  if (!more) { break; }
  workgroupBarrier();
}`;
}

/** Text for each run of a thread. */
export function eachRun(
  { extent, depth, threads }: Operand,
  text: (i: number) => string,
): string {
  return unroll((extent * depth) / 4 / threads, text);
}
