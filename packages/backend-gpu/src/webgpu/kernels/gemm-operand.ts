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

/** Where element (outer, inner) of a batch entry lies: `a_index`, `b_index`. */
export function indexText({ name, layout }: Operand): string {
  const [row, column] = name === 'a' ? ['outer', 'inner'] : ['inner', 'outer'];
  return `fn ${name}_index(batch: u32, outer: u32, inner: u32) -> u32 {
  let row = ${row};
  let column = ${column};
  return ${layout.index};
}`;
}

/**
 * For each run that a thread reads: its values are `next_a0`, …, and it stands
 * in line `major_a0` of the tile from element `minor_a0` on. Where the tile is
 * over the outer edge, the last run before it is read again, for what the
 * result has no element for: no check is left for the loop.
 */
function runsText(operand: Operand): string {
  const { name, threads, type, layout } = operand;
  const along = isAlongInner(operand);
  const last = along || !layout.aligned ? 1 : 4;
  const places = eachRun(operand, (i) => {
    const id = `${name}${i}`;
    const [outer, inner] = along ? ['major', 'minor'] : ['minor', 'major'];
    return `var next_${id} = vec4<${type}>();
let major_${id} = (tid + ${i * threads}u) / ${runs(operand)}u;
let minor_${id} = (tid + ${i * threads}u) % ${runs(operand)}u * 4u;
let outer_${id} = min(origin_${name} + ${outer}_${id}, ${limitOf(operand)} - ${last}u);
let inner_${id} = ${inner}_${id};
var at_${id} = ${name}_index(batch, outer_${id}, base + inner_${id}) / 4u;`;
  });
  return `${places}
let step_${name} = (${name}_index(batch, 0u, TILE_K) - ${name}_index(batch, 0u, 0u)) / 4u;`;
}

/** Reads the runs of the step at `base`; 0 past the inner edge. */
function fetchText(operand: Operand): string {
  const { name, layout, type, whole } = operand;
  return eachRun(operand, (i) => {
    const id = `${name}${i}`;
    if (!layout.aligned) return elementsText(operand, id);
    const place = layout.isBent
      ? `${name}_index(batch, outer_${id}, base + inner_${id}) / 4u`
      : `at_${id}`;
    const read = `next_${id} = vec4<${type}>(${name}[${place}]);`;
    const checked = whole
      ? read
      : `if (base + inner_${id} < u.inner) { ${read} } else { next_${id} = vec4<${type}>(); }`;
    return `${checked}\nat_${id} += step_${name};`;
  });
}

/** Without branches: software compilers take minutes over so many. */
function elementsText(operand: Operand, id: string): string {
  const { name, type } = operand;
  const along = isAlongInner(operand);
  return unroll(4, (p) => {
    const inner = `base + inner_${id}${along ? ` + ${p}u` : ''}`;
    const outer = along
      ? `outer_${id}`
      : `min(outer_${id} + ${p}u, ${limitOf(operand)} - 1u)`;
    const read = `${name}[${name}_index(batch, ${outer}, min(${inner}, u.inner - 1u))]`;
    return `next_${id}[${p}] = select(${type}(0.0), ${type}(${read}), ${inner} < u.inner);`;
  });
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
