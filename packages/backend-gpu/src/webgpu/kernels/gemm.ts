import type { Tensor } from '@asa/core';
import { flat, input, type Launch, output, u32 } from '../launch';
import { type KernelContext, unroll } from './context';

/** Where element (row, column) of one batch entry of a matrix lies. */
export interface Layout {
  /** Names the layout in the cache of compiled kernels. */
  readonly name: string;
  /** WGSL of the flat index, of `batch`, `row`, `column` and uniforms. */
  readonly index: string;
  /** Neighbours in memory: along a row, or along a column. */
  readonly contiguous: 'row' | 'column';
  /** The first index of a run of four is a multiple of 4. */
  readonly aligned: boolean;
}

/** `y[batch] = a[batch] b[batch]`: `[M, K] [K, N]`. */
export interface Gemm {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly y: Tensor;
  readonly layouts: {
    readonly a: Layout;
    readonly b: Layout;
    readonly y: Layout;
  };
  readonly batches: number;
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
  /** Further uniforms that the layouts name. */
  readonly uniforms?: Launch['uniforms'];
}

/** Enqueues the product, in the tile that suits its shape. */
export function gemm(context: KernelContext, call: Gemm): void {
  const { rows, columns, batches, inner } = call;
  if (rows * columns * batches === 0) return;
  if (inner === 0) {
    context.clear(call.y);
  } else if (rows <= FEW_ROWS) {
    dots(context, call);
  } else {
    tiled(context, call, tileFor(call));
  }
}

const FEW_ROWS = 4;

interface Tile {
  /** Rows and columns of a workgroup's tile, and the depth of one step. */
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Rows and columns of a thread's part, multiples of 4. */
  readonly tm: number;
  readonly tn: number;
}

const large: Tile = { m: 128, n: 128, k: 8, tm: 8, tn: 8 };
const medium: Tile = { m: 64, n: 64, k: 16, tm: 4, tn: 4 };
const small: Tile = { m: 32, n: 32, k: 16, tm: 4, tn: 4 };

/** Workgroups that keep a large device busy. */
const ENOUGH = 256;

function tileFor({ rows, columns, batches }: Gemm): Tile {
  const tiles = ({ m, n }: Tile) =>
    Math.ceil(rows / m) * Math.ceil(columns / n) * batches;
  if (tiles(large) >= ENOUGH) return large;
  return tiles(medium) >= ENOUGH / 4 ? medium : small;
}

/**
 * Tiles in workgroup memory, a block of sums a thread in registers. While one
 * step is multiplied, the next is on its way from memory into registers and
 * then into the other half of the workgroup memory: one barrier a step.
 */
function tiled(context: KernelContext, call: Gemm, tile: Tile): void {
  const { a, b, y, layouts, batches, rows, columns, inner } = call;
  const across = Math.ceil(columns / tile.n);
  const down = Math.ceil(rows / tile.m);
  const whole =
    rows % tile.m === 0 && columns % tile.n === 0 && inner % tile.k === 0;
  const vectors = {
    a: whole && layouts.a.aligned,
    b: whole && layouts.b.aligned,
    y: whole && layouts.y.aligned && layouts.y.contiguous === 'row',
  };
  const typed = (tensor: Tensor, isVector: boolean) =>
    isVector ? `vec4<${tensor.dtype}>` : undefined;
  context.run({
    kernel: 'gemm',
    constants: { TILE_M: tile.m, TILE_N: tile.n, TILE_K: tile.k },
    variant: `${layouts.a.name},${layouts.b.name},${layouts.y.name},${whole}`,
    bindings: {
      a: input(a, typed(a, vectors.a)),
      b: input(b, typed(b, vectors.b)),
      y: output(y, typed(y, vectors.y)),
    },
    uniforms: {
      rows: u32(rows),
      columns: u32(columns),
      inner: u32(inner),
      batches: u32(batches),
      across: u32(across),
      down: u32(down),
      ...call.uniforms,
    },
    grid: flat(across * down * batches),
    source: () => tiledSource(layouts, tile, whole, vectors),
  });
}

function tiledSource(
  layouts: Gemm['layouts'],
  tile: Tile,
  whole: boolean,
  vectors: { readonly a: boolean; readonly b: boolean; readonly y: boolean },
) {
  const { m, n, k, tm, tn } = tile;
  const threadsX = n / tn;
  const threads = (m / tm) * threadsX;
  const loadsA = Math.ceil((m * k) / 4 / threads);
  const loadsB = Math.ceil((n * k) / 4 / threads);
  // Four rows of k each, or four columns: both tiles lie k by rows (columns),
  // so that a thread reads its operands four at a time.
  const load = (
    name: 'a' | 'b',
    extent: number,
    loads: number,
    alongInner: boolean,
  ) => {
    const quads = alongInner ? k / 4 : extent / 4;
    return unroll(loads, (i) => {
      const slot = `slot_${name}${i}`;
      return `let ${slot} = tid + ${i * threads}u;
if (${slot} < ${(extent * k) / 4}u) {
  let major = ${slot} / ${quads}u;
  let minor = ${slot} % ${quads}u * 4u;
  next_${name}${i} = ${alongInner ? `load_${name}(batch, origin_${name} + major, base + minor)` : `load_${name}(batch, origin_${name} + minor, base + major)`};
}`;
    });
  };
  // Tiles are vectors of four rows (columns), k lines of them.
  const stage = (
    name: 'a' | 'b',
    extent: number,
    loads: number,
    alongInner: boolean,
  ) => {
    const quads = alongInner ? k / 4 : extent / 4;
    const pitch = extent / 4 + 1;
    return unroll(loads, (i) => {
      const slot = `slot_${name}${i}`;
      const put = alongInner
        ? `let column = ${slot} / ${quads}u;
let at = half + ${slot} % ${quads}u * ${4 * pitch}u + column / 4u;
${unroll(4, (p) => `tile_${name}[at + ${p * pitch}u][column % 4u] = next_${name}${i}[${p}];`)}`
        : `tile_${name}[half + ${slot} / ${quads}u * ${pitch}u + ${slot} % ${quads}u] = next_${name}${i};`;
      return `if (${slot} < ${(extent * k) / 4}u) {
${put}
}`;
    });
  };
  const halfA = k * (m / 4 + 1);
  const halfB = k * (n / 4 + 1);
  // a is [row, inner], b is [inner, column]; `alongInner` tells which of both
  // indices has its neighbours in memory.
  const aInner = layouts.a.contiguous === 'row';
  const bInner = layouts.b.contiguous === 'column';
  const stageWith = (name: 'a' | 'b', half: string) =>
    name === 'a'
      ? `{ let half = ${half} * ${halfA}u; ${stage('a', m, loadsA, aInner)} }`
      : `{ let half = ${half} * ${halfB}u; ${stage('b', n, loadsB, bInner)} }`;
  const quads = (count: number) => count / 4;
  // A thread's rows and columns come in fours that stand a quarter of the
  // tile apart: neighbours in a warp then read neighbouring words.
  const rowOf = (q: number) => `${(m / quads(tm)) * q}u + ty * 4u`;
  const columnOf = (q: number) => `${(n / quads(tn)) * q}u + tx * 4u`;
  return {
    threads,
    declarations: `
var<workgroup> tile_a: array<vec4f, ${2 * halfA}>;
var<workgroup> tile_b: array<vec4f, ${2 * halfB}>;
${loader('a', layouts.a, 'u.rows', aInner, whole, vectors.a)}
${loader('b', layouts.b, 'u.columns', bInner, whole, vectors.b)}
fn y_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.y.index}; }`,
    body: `let flat = group.x + group.y * groups.x;
if (flat >= u.across * u.down * u.batches) { return; }
let batch = flat / (u.across * u.down);
let origin_a = flat / u.across % u.down * TILE_M;
let origin_b = flat % u.across * TILE_N;
let tx = tid % ${threadsX}u;
let ty = tid / ${threadsX}u;
${unroll(loadsA, (i) => `var next_a${i} = vec4f();`)}
${unroll(loadsB, (i) => `var next_b${i} = vec4f();`)}
${unroll(tm, (i) => unroll(quads(tn), (q) => `var sum${i}_${q} = vec4f();`))}
var base = 0u;
${load('a', m, loadsA, aInner)}
${load('b', n, loadsB, bInner)}
${stageWith('a', '0u')}
${stageWith('b', '0u')}
workgroupBarrier();
var current = 0u;
loop {
  base += TILE_K;
  let more = base < u.inner;
  if (more) {
${load('a', m, loadsA, aInner)}
${load('b', n, loadsB, bInner)}
  }
  for (var p = 0u; p < TILE_K; p++) {
    let line_a = current * ${halfA}u + p * ${m / 4 + 1}u;
    let line_b = current * ${halfB}u + p * ${n / 4 + 1}u;
${unroll(quads(tm), (q) => `let a${q} = tile_a[line_a + ${(m / tm) * q}u + ty];`)}
${unroll(quads(tn), (q) => `let b${q} = tile_b[line_b + ${(n / tn) * q}u + tx];`)}
${unroll(tm, (i) => unroll(quads(tn), (q) => `sum${i}_${q} = fma(vec4f(a${Math.floor(i / 4)}[${i % 4}]), b${q}, sum${i}_${q});`))}
  }
  if (!more) { break; }
  current = 1u - current;
${stageWith('a', 'current')}
${stageWith('b', 'current')}
  workgroupBarrier();
}
${unroll(tm, (i) =>
  unroll(quads(tn), (q) => {
    const row = `origin_a + ${rowOf(Math.floor(i / 4))} + ${i % 4}u`;
    const column = `origin_b + ${columnOf(q)}`;
    if (vectors.y) {
      return `y[y_index(batch, ${row}, ${column}) / 4u] = t_y(sum${i}_${q});`;
    }
    return unroll(
      4,
      (p) =>
        `if (${row} < u.rows && ${column} + ${p}u < u.columns) { y[y_index(batch, ${row}, ${column} + ${p}u)] = t_y(sum${i}_${q}[${p}]); }`,
    );
  }),
)}`,
  };
}

/**
 * `load_a(batch, row, inner)`, `load_b(batch, column, inner)`: four elements
 * from there on, along the inner index or across it; 0 past the edges.
 */
function loader(
  name: 'a' | 'b',
  { index }: Layout,
  extent: string,
  alongInner: boolean,
  whole: boolean,
  isVector: boolean,
): string {
  const [row, column] = name === 'a' ? ['outer', 'inner'] : ['inner', 'outer'];
  const at = `fn ${name}_index(batch: u32, outer: u32, inner: u32) -> u32 {
  let row = ${row};
  let column = ${column};
  return ${index};
}`;
  const step = (p: number) =>
    alongInner ? `outer, inner + ${p}u` : `outer + ${p}u, inner`;
  const isInside = (p: number) =>
    alongInner
      ? `outer < ${extent} && inner + ${p}u < u.inner`
      : `outer + ${p}u < ${extent} && inner < u.inner`;
  const element = (p: number) =>
    `f32(${name}[${name}_index(batch, ${step(p)})])`;
  const body = isVector
    ? `return vec4f(${name}[${name}_index(batch, outer, inner) / 4u]);`
    : whole
      ? `return vec4f(${[0, 1, 2, 3].map(element).join(', ')});`
      : `var four = vec4f();
${unroll(4, (p) => `if (${isInside(p)}) { four[${p}] = ${element(p)}; }`)}
return four;`;
  return `${at}
fn load_${name}(batch: u32, outer: u32, inner: u32) -> vec4f {
  ${body}
}`;
}

const THREADS = 128;

/**
 * Few rows, as in decoding: one workgroup a column of b reads it once, for all
 * rows, and adds its threads' parts.
 */
function dots(context: KernelContext, call: Gemm): void {
  const { a, b, y, layouts, batches, rows, columns, inner } = call;
  // Neighbouring threads read neighbours of b: along the inner index, or
  // along 32 columns.
  const alongInner = layouts.b.contiguous === 'column';
  const perGroup = alongInner ? 1 : 32;
  const parts = THREADS / perGroup;
  const across = Math.ceil(columns / perGroup);
  context.run({
    kernel: 'dots',
    constants: { ROWS: rows, PER_GROUP: perGroup, PARTS: parts },
    variant: `${layouts.a.name},${layouts.b.name},${layouts.y.name}`,
    bindings: { a: input(a), b: input(b), y: output(y) },
    uniforms: {
      rows: u32(rows),
      columns: u32(columns),
      inner: u32(inner),
      batches: u32(batches),
      across: u32(across),
      ...call.uniforms,
    },
    grid: flat(across * batches),
    source: () => ({
      threads: THREADS,
      declarations: `
var<workgroup> partial: array<f32, ${THREADS * rows}>;
fn a_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.a.index}; }
fn b_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.b.index}; }
fn y_index(batch: u32, row: u32, column: u32) -> u32 { return ${layouts.y.index}; }`,
      body: `let flat = group.x + group.y * groups.x;
if (flat >= u.across * u.batches) { return; }
let batch = flat / u.across;
let column = flat % u.across * PER_GROUP + tid % PER_GROUP;
let part = tid / PER_GROUP;
${unroll(rows, (i) => `var sum${i} = 0.0;`)}
if (column < u.columns) {
  for (var k = part; k < u.inner; k += PARTS) {
    let value = f32(b[b_index(batch, k, column)]);
${unroll(rows, (i) => `sum${i} = fma(f32(a[a_index(batch, ${i}u, k)]), value, sum${i});`)}
  }
}
${unroll(rows, (i) => `partial[${i * THREADS}u + tid] = sum${i};`)}
for (var half = PARTS / 2u; half > 0u; half /= 2u) {
  workgroupBarrier();
  if (part < half) {
${unroll(rows, (i) => `partial[${i * THREADS}u + tid] += partial[${i * THREADS}u + tid + half * PER_GROUP];`)}
  }
}
workgroupBarrier();
if (part == 0u && column < u.columns) {
${unroll(rows, (i) => `y[y_index(batch, ${i}u, column)] = t_y(partial[${i * THREADS}u + tid]);`)}
}`,
    }),
  });
}
