import type { Tensor } from '@asa/core';
import { flat, input, type Launch, output, u32 } from '../launch';
import { type KernelContext, unroll } from './context';
import type { Gemm, Layout } from './gemm';
import {
  eachRun,
  indexText,
  isAlongInner,
  type Operand,
  stepsText,
} from './gemm-operand';

/** A tile of plain multiplications and additions in f32. */
export interface Tile {
  readonly kind: 'plain';
  /** Rows and columns of a workgroup's tile, and the depth of one step. */
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Rows and columns of a thread's part, multiples of 4. */
  readonly tm: number;
  readonly tn: number;
}

/** The inner index in parts, each part's sums written behind the last's. */
export interface Split {
  readonly parts: number;
  /** Inner extent of a part, a multiple of the tile's depth. */
  readonly chunk: number;
}

/**
 * Tiles in workgroup memory, a block of sums a thread in registers. All of a
 * step is written out: constant places in workgroup memory cost no arithmetic,
 * and no check where the device checks bounds.
 */
export function tiledProduct(
  context: KernelContext,
  call: Gemm,
  tile: Tile,
  split: Split,
): void {
  context.run({
    ...tiledLaunch(call, tile, split),
    kernel: 'gemm',
    bindings: { ...operandBindings(call), y: resultBinding(call) },
    source: () => source(call, tile),
  });
}

interface Extents {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** What all tiled kernels have in common. */
export function tiledLaunch(
  call: Gemm,
  tile: Extents,
  { parts, chunk }: Split,
): Pick<Launch, 'constants' | 'variant' | 'uniforms' | 'grid'> {
  const { layouts, rows, columns, inner, batches } = call;
  const across = Math.ceil(columns / tile.n);
  const down = Math.ceil(rows / tile.m);
  return {
    constants: { TILE_M: tile.m, TILE_N: tile.n, TILE_K: tile.k },
    variant: `${layouts.a.name},${layouts.b.name},${layouts.y.name},${isWhole(call, tile)}`,
    uniforms: {
      rows: u32(rows),
      columns: u32(columns),
      inner: u32(inner),
      batches: u32(batches),
      across: u32(across),
      down: u32(down),
      parts: u32(parts),
      chunk: u32(chunk),
      size: u32(rows * columns * batches),
      ...call.uniforms,
    },
    grid: flat(across * down * batches * parts),
  };
}

/** Both operands of a product in tiles. */
export function operandsOf(
  call: Gemm,
  tile: Extents,
  threads: number,
  type: Operand['type'],
): readonly [Operand, Operand] {
  const common = { depth: tile.k, threads, whole: isWhole(call, tile), type };
  return [
    { name: 'a', layout: call.layouts.a, extent: tile.m, ...common },
    { name: 'b', layout: call.layouts.b, extent: tile.n, ...common },
  ];
}

const isWhole = ({ inner }: Gemm, { k }: Extents) => inner % k === 0;

export function operandBindings({ a, b, layouts }: Gemm) {
  const typed = (tensor: Tensor, aligned: boolean) =>
    input(tensor, aligned ? `vec4<${tensor.dtype}>` : undefined);
  return { a: typed(a, layouts.a.aligned), b: typed(b, layouts.b.aligned) };
}

/** The result is written four elements of a row at a time. */
export const isWide = (y: Layout) => y.aligned && y.contiguous === 'row';

export const resultBinding = ({ y, layouts }: Gemm) =>
  output(y, isWide(layouts.y) ? `vec4<${y.dtype}>` : undefined);

/** Where the workgroup stands: `batch`, `origin_a`, `origin_b`, `base`, … */
export const tileOrigin = `let flat = group.x + group.y * groups.x;
let tiles = u.across * u.down;
if (flat >= tiles * u.batches * u.parts) { return; }
let batch = flat / tiles % u.batches;
let part = flat / (tiles * u.batches);
let origin_a = flat / u.across % u.down * TILE_M;
let origin_b = flat % u.across * TILE_N;
let end = min(u.inner, (part + 1u) * u.chunk);
var base = part * u.chunk;`;

export const outputIndex = ({ y }: Gemm['layouts']): string =>
  `fn y_index(part: u32, batch: u32, row: u32, column: u32) -> u32 {
  return part * u.size + ${y.index};
}`;

function source(call: Gemm, tile: Tile) {
  const wideY = isWide(call.layouts.y);
  const { m, n, k, tm, tn } = tile;
  const threadsX = n / tn;
  const threadsY = m / tm;
  const threads = threadsX * threadsY;
  const [a, b] = operandsOf(call, tile, threads, 'f32');
  return {
    threads,
    declarations: `
var<workgroup> tile_a: array<vec4f, ${k * pitch(a)}>;
var<workgroup> tile_b: array<vec4f, ${k * pitch(b)}>;
${indexText(a)}
${indexText(b)}
${outputIndex(call.layouts)}`,
    body: `${tileOrigin}
${placeOfThread(threadsX)}
${unroll(tm, (i) => unroll(tn / 4, (q) => `var sum${i}_${q} = vec4f();`))}
${stepsText(
  [a, b],
  stageText,
  unroll(
    k,
    (p) => `{
${unroll(tm / 4, (q) => `let a${q} = tile_a[${p * pitch(a) + threadsY * q}u + ty];`)}
${unroll(tn / 4, (q) => `let b${q} = tile_b[${p * pitch(b) + threadsX * q}u + tx];`)}
${unroll(tm, (i) => unroll(tn / 4, (q) => `sum${i}_${q} = fma(vec4f(a${i >> 2}[${i & 3}]), b${q}, sum${i}_${q});`))}
}`,
  ),
)}
${unroll(tm, (i) => unroll(tn / 4, (q) => storeText(i, q, threadsX, threadsY, wideY)))}`,
  };
}

/**
 * A thread's place `(tx, ty)`. Runs of 32 threads lie four by eight, so that
 * they read few different words of both tiles.
 */
function placeOfThread(threadsX: number): string {
  return `let tx = tid / 32u % ${threadsX / 8}u * 8u + tid % 8u;
let ty = tid / ${threadsX * 4}u * 4u + tid % 32u / 8u;`;
}

/** Vectors in a line of k; one more where writing them would collide. */
function pitch(operand: Operand): number {
  return operand.extent / 4 + (isAlongInner(operand) ? 1 : 0);
}

/** Tiles are k lines of vectors of four rows (columns). */
function stageText(operand: Operand): string {
  const { name } = operand;
  const line = pitch(operand);
  return eachRun(operand, (i) => {
    const id = `${name}${i}`;
    if (!isAlongInner(operand)) {
      return `tile_${name}[major_${id} * ${line}u + minor_${id} / 4u] = next_${id};`;
    }
    const column = `major_${id} / 4u][major_${id} % 4u]`;
    return unroll(
      4,
      (p) =>
        `tile_${name}[(minor_${id} + ${p}u) * ${line}u + ${column} = next_${id}[${p}];`,
    );
  });
}

/**
 * Writes four sums. A thread's rows and columns come in fours that stand apart
 * by all threads' fours: neighbours read and write neighbouring words.
 */
function storeText(
  i: number,
  q: number,
  threadsX: number,
  threadsY: number,
  wideY: boolean,
): string {
  const row = `origin_a + ty * 4u + ${threadsY * 4 * (i >> 2) + (i & 3)}u`;
  const column = `origin_b + tx * 4u + ${threadsX * 4 * q}u`;
  const sum = `sum${i}_${q}`;
  if (wideY) {
    return `if (${row} < u.rows && ${column} < u.columns) { y[y_index(part, batch, ${row}, ${column}) / 4u] = t_y(${sum}); }`;
  }
  return unroll(
    4,
    (p) =>
      `if (${row} < u.rows && ${column} + ${p}u < u.columns) { y[y_index(part, batch, ${row}, ${column} + ${p}u)] = t_y(${sum}[${p}]); }`,
  );
}
