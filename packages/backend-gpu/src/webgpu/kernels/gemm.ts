import type { Tensor } from '@asa/core';
import type { Launch } from '../launch';
import { columnSum } from './column-sum';
import type { KernelContext } from './context';
import { FEW_ROWS, rowsProduct } from './gemm-rows';
import { type Split, type Tile, tiledProduct } from './gemm-tile';
import { type UnitTile, unitProduct } from './gemm-unit';

/** Where element (row, column) of one batch entry of a matrix lies. */
export interface Layout {
  /** Names the layout in the cache of compiled kernels. */
  readonly name: string;
  /** WGSL of the flat index, of `batch`, `row`, `column` and uniforms. */
  readonly index: string;
  /** Neighbours in memory: along a row, or along a column. */
  readonly contiguous: 'row' | 'column';
  /** Runs of four neighbours start at multiples of 4 and end in the matrix. */
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

/** Enqueues the product, in the way that suits its shape and the device. */
export function gemm(context: KernelContext, call: Gemm): void {
  const { rows, columns, batches, inner, y } = call;
  if (rows * columns * batches === 0) return;
  if (inner === 0) {
    context.clear(y);
  } else if (rows <= FEW_ROWS) {
    rowsProduct(context, call);
  } else {
    const tile = tileFor(context, call);
    const split = splitFor(call, tile);
    if (split.parts === 1) {
      multiply(context, call, tile, split);
    } else {
      const sums = context.scratch(split.parts * y.size, 'f32');
      multiply(context, { ...call, y: sums }, tile, split);
      columnSum(context, sums, split.parts, y.size, y);
      sums.free();
    }
  }
}

function multiply(
  context: KernelContext,
  call: Gemm,
  tile: Tile | UnitTile,
  split: Split,
): void {
  const { matrixUnit } = context;
  if (tile.kind === 'plain') tiledProduct(context, call, tile, split);
  else if (matrixUnit) unitProduct(context, call, matrixUnit, tile, split);
}

/** From the largest, which reads the least, to the smallest. */
const plainTiles: readonly Tile[] = [
  { kind: 'plain', m: 128, n: 128, k: 16, tm: 8, tn: 8 },
  { kind: 'plain', m: 64, n: 64, k: 16, tm: 4, tn: 4 },
  { kind: 'plain', m: 32, n: 32, k: 16, tm: 4, tn: 4 },
];
const unitTiles: readonly UnitTile[] = [
  { kind: 'unit', m: 128, n: 128, k: 64, sm: 64, sn: 32 },
  { kind: 'unit', m: 64, n: 64, k: 64, sm: 32, sn: 32 },
];

/** Workgroups that keep a large device busy. */
const ENOUGH = 256;
/** Inner extent below which a part costs more than it saves. */
const SHORTEST_PART = 256;

function tileFor(context: KernelContext, call: Gemm): Tile | UnitTile {
  const { a, b } = call;
  const isHalf = a.dtype === 'f16' && b.dtype === 'f16';
  const tiles = context.matrixUnit && isHalf ? unitTiles : plainTiles;
  const enough = tiles.find(
    (tile) =>
      tile.m < 2 * call.rows &&
      tile.n < 2 * call.columns &&
      workgroups(call, tile) * splitFor(call, tile).parts >= ENOUGH / 2,
  );
  return enough ?? (tiles.at(-1) as Tile | UnitTile);
}

/** As many parts as keep the device busy, and no shorter than is worth it. */
function splitFor(call: Gemm, tile: Tile | UnitTile): Split {
  const { inner } = call;
  const wanted = Math.floor(ENOUGH / workgroups(call, tile));
  const most = Math.floor(inner / SHORTEST_PART);
  const steps = Math.ceil(inner / tile.k);
  const each = Math.ceil(steps / Math.max(1, Math.min(wanted, most)));
  return { parts: Math.ceil(steps / each), chunk: each * tile.k };
}

function workgroups(call: Gemm, { m, n }: Tile | UnitTile): number {
  const { rows, columns, batches } = call;
  return Math.ceil(rows / m) * Math.ceil(columns / n) * batches;
}
