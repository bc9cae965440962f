import { flat, input, output, u32 } from '../launch';
import { type KernelContext, unroll } from './context';
import type { Gemm } from './gemm';

/** Rows of a that the kernel takes at once. */
export const FEW_ROWS = 4;

const THREADS = 256;
/** Steps whose reads are under way together. */
const AHEAD = 4;

/**
 * `y = a b` for few rows of a, as in decoding: b is read once, for all rows,
 * four neighbours at a time where they lie together. Threads share a column's
 * (or a quad of columns') inner index; their parts are added in a tree.
 */
export function rowsProduct(context: KernelContext, call: Gemm): void {
  const { a, b, y, layouts, batches, rows, columns, inner } = call;
  const along = layouts.b.contiguous === 'column';
  const wide =
    layouts.b.aligned &&
    (!along || (layouts.a.aligned && layouts.a.contiguous === 'row'));
  const width = wide ? 4 : 1;
  const perThread = along ? 1 : width;
  const parts = partsFor(call, along, width);
  const across = Math.ceil(columns / ((THREADS / parts) * perThread));
  const typed = wide ? 'vec4' : 'element';
  context.run({
    kernel: 'gemm-rows',
    constants: { ROWS: rows, PARTS: parts },
    variant: `${layouts.a.name},${layouts.b.name},${layouts.y.name}`,
    bindings: {
      a: input(a, wide && along ? `vec4<${a.dtype}>` : undefined),
      b: input(b, wide ? `vec4<${b.dtype}>` : undefined),
      y: output(y),
    },
    uniforms: {
      rows: u32(rows),
      columns: u32(columns),
      inner: u32(inner),
      batches: u32(batches),
      across: u32(across),
      ...call.uniforms,
    },
    grid: flat(across * batches),
    source: () => source(layouts, { rows, parts, along, typed }),
  });
}

/** Threads of a column: neighbours along b's rows or columns read together. */
function partsFor(call: Gemm, along: boolean, width: number): number {
  if (!along) return width === 4 ? 32 : 8;
  const columns = call.columns * call.batches;
  const most = columns >= 2048 ? 32 : columns >= 512 ? 64 : 128;
  let parts = most;
  while (parts > 8 && parts * width >= 2 * call.inner) parts /= 2;
  return parts;
}

interface Shape {
  readonly rows: number;
  readonly parts: number;
  /** b's neighbours lie along the inner index. */
  readonly along: boolean;
  readonly typed: 'vec4' | 'element';
}

function source(layouts: Gemm['layouts'], shape: Shape) {
  const { rows, parts, along, typed } = shape;
  const width = typed === 'vec4' ? 4 : 1;
  const [type, zero] = width === 4 ? ['vec4f', 'vec4f()'] : ['f32', '0.0'];
  const each = THREADS / parts;
  const [kWidth, columnWidth] = along ? [width, 1] : [1, width];
  const step = parts * kWidth;
  const multiply = (k: string, suffix: string) => `
let at${suffix} = ${k};
let value${suffix} = ${type}(b[b_index(batch, at${suffix}, column) / ${width}u]);
${unroll(rows, (i) => `let a${suffix}_${i} = ${type}(${along ? type : 'f32'}(a[a_index(batch, ${i}u, at${suffix}) / ${kWidth}u]));`)}`;
  const add = (suffix: string) =>
    unroll(
      rows,
      (i) => `sum${i} = fma(a${suffix}_${i}, value${suffix}, sum${i});`,
    );
  const result = (i: number, p: number) => {
    const sum = `partial[${i * THREADS}u + tid]`;
    if (width === 1) return sum;
    return along ? `dot(${sum}, vec4f(1.0))` : `${sum}[${p}]`;
  };
  return {
    threads: THREADS,
    declarations: `
var<workgroup> partial: array<${type}, ${THREADS * rows}>;
fn a_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.a.index}; }
fn b_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.b.index}; }
fn y_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.y.index}; }`,
    body: `let flat = group.x + group.y * groups.x;
if (flat >= u.across * u.batches) { return; }
let batch = flat / u.across;
let part = tid ${along ? '%' : '/'} ${along ? parts : each}u;
let place = tid ${along ? '/' : '%'} ${along ? parts : each}u;
let column = (flat % u.across * ${each}u + place) * ${columnWidth}u;
${unroll(rows, (i) => `var sum${i} = ${zero};`)}
if (column < u.columns) {
  var k = part * ${kWidth}u;
  for (; k + ${(AHEAD - 1) * step}u < u.inner; k += ${AHEAD * step}u) {
${unroll(AHEAD, (i) => multiply(`k + ${i * step}u`, `${i}`))}
${unroll(AHEAD, (i) => add(`${i}`))}
  }
  for (; k < u.inner; k += ${step}u) {
${multiply('k', '')}
${add('')}
  }
}
${unroll(rows, (i) => `partial[${i * THREADS}u + tid] = sum${i};`)}
for (var half = ${parts / 2}u; half > 0u; half /= 2u) {
  workgroupBarrier();
  if (part < half) {
    let other = tid + half * ${along ? 1 : each}u;
${unroll(rows, (i) => `partial[${i * THREADS}u + tid] += partial[${i * THREADS}u + other];`)}
  }
}
workgroupBarrier();
if (part == 0u && column < u.columns) {
${unroll(rows, (i) => unroll(columnWidth, (p) => `y[y_index(batch, ${i}u, column + ${p}u)] = t_y(${result(i, p)});`))}
}`,
  };
}
