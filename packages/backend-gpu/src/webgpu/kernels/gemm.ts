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
  /** Steps along the inner index are not all of one length in memory. */
  readonly isBent?: boolean;
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
    const { tile, split } = planFor(context, call);
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

/**
 * Multiplications and additions a microsecond, and workgroups that run at a
 * time, as measured on an H100; only their relations matter.
 */
interface Speed {
  readonly rate: number;
  readonly slots: number;
}

const plainTiles: readonly (Tile & Speed)[] = [
  {
    kind: 'plain',
    m: 128,
    n: 128,
    k: 16,
    tm: 16,
    tn: 8,
    rate: 23e6,
    slots: 264,
  },
  { kind: 'plain', m: 64, n: 64, k: 16, tm: 8, tn: 4, rate: 20e6, slots: 528 },
  { kind: 'plain', m: 32, n: 32, k: 16, tm: 4, tn: 4, rate: 12e6, slots: 1056 },
];
const unitTiles: readonly (UnitTile & Speed)[] = [
  {
    kind: 'unit',
    m: 128,
    n: 128,
    k: 64,
    sm: 64,
    sn: 32,
    rate: 110e6,
    slots: 132,
  },
  { kind: 'unit', m: 64, n: 64, k: 64, sm: 32, sn: 32, rate: 85e6, slots: 264 },
  { kind: 'unit', m: 32, n: 64, k: 64, sm: 32, sn: 32, rate: 65e6, slots: 528 },
];

/** Microseconds to add parts up: of the dispatch, and of an element. */
const ADDING = { dispatch: 8, element: 4e-6 };
/** Inner extent below which a part costs more than it saves. */
const SHORTEST_PART = 128;
/** Elements of a result that is still added up from parts. */
const LARGEST_SPLIT = 2 ** 21;

interface Plan {
  readonly tile: Tile | UnitTile;
  readonly split: Split;
  readonly microseconds: number;
}

/** The quickest, as far as full rounds of workgroups tell. */
function planFor(context: KernelContext, call: Gemm): Plan {
  const { a, b, y, inner } = call;
  const isHalf = a.dtype === 'f16' && b.dtype === 'f16';
  const tiles = (context.matrixUnit && isHalf ? unitTiles : plainTiles).filter(
    (tile) => !context.smallTiles || tile.m < 128,
  );
  const most = y.size <= LARGEST_SPLIT ? Math.floor(inner / SHORTEST_PART) : 1;
  const plans = tiles.flatMap((tile) => {
    const fill = Math.floor(tile.slots / workgroups(call, tile));
    const parts = Math.max(1, Math.min(fill, most));
    return [planOf(call, tile, 1), planOf(call, tile, parts)];
  });
  return plans.reduce((best, plan) =>
    plan.microseconds < best.microseconds ? plan : best,
  );
}

function planOf(
  call: Gemm,
  tile: (Tile | UnitTile) & Speed,
  wanted: number,
): Plan {
  const { m, n, k, rate, slots } = tile;
  const steps = Math.ceil(call.inner / k);
  const each = Math.ceil(steps / wanted);
  const parts = Math.ceil(steps / each);
  const rounds = Math.ceil((workgroups(call, tile) * parts) / slots);
  const multiplying = (rounds * slots * m * n * each * k) / rate;
  const adding =
    parts > 1 ? ADDING.dispatch + ADDING.element * parts * call.y.size : 0;
  return {
    tile,
    split: { parts, chunk: each * k },
    microseconds: multiplying + adding,
  };
}

function workgroups(call: Gemm, { m, n }: Tile | UnitTile): number {
  const { rows, columns, batches } = call;
  return Math.ceil(rows / m) * Math.ceil(columns / n) * batches;
}
