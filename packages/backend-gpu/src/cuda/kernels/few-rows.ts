import { i32 } from '../launch';
import type { Product } from '../products';
import { type KernelContext, PIECE, typed } from './context';
import { launchesOf, type ManyLaunch, padded } from './many';

const THREADS = 256;
const WARPS = THREADS / 32;
/** Products of a launch, and rows that a lane has sums of. */
const MOST = 8;
const MOST_ROWS = 4;
/** Pieces that a lane keeps, 16 bytes each: six take 24 registers. */
const MOST_PIECES = 24;
/** Columns of a multiprocessor from which on a warp takes two at a time. */
const MANY_COLUMNS = 32;

const none = [undefined, undefined, undefined, undefined, i32(0), i32(0)];

/**
 * Whether the kernel has a product: weights `[out, in]` of 16-bit elements in
 * whole pieces. In f32, which takes twice the registers, cuBLASLt goes on.
 */
export function hasFewRows({ a, b, y, ...product }: Product): boolean {
  const { rows, columns, inner, batches = 1 } = product;
  return (
    rows <= MOST_ROWS &&
    inner % PIECE === 0 &&
    a.tensor.dtype !== 'f32' &&
    !a.isTransposed &&
    b.isTransposed === true &&
    batches === 1 &&
    a.pitch === inner &&
    b.pitch === inner &&
    y.pitch === columns
  );
}

/** Whether two such products may share a launch. */
export const areAlike = (a: Product, b: Product): boolean =>
  a.rows === b.rows &&
  a.inner === b.inner &&
  a.a.tensor.dtype === b.a.tensor.dtype;

/** Products that are alike, of some elements and some terms. */
export function multiplyFewRows(
  context: KernelContext,
  products: readonly Product[],
): void {
  const columns = products.reduce((sum, product) => sum + product.columns, 0);
  const many = MANY_COLUMNS * context.facts.multiprocessors;
  const warpColumns = columns > many ? 2 : 1;
  const launches = launchesOf(
    products,
    ({ rows }) => rows,
    ({ y }) => y.tensor,
    // Blocks of threads have some columns of all rows.
    {
      elements: WARPS * warpColumns * (products[0]?.rows ?? 1),
      most: MOST,
    },
  );
  for (const launch of launches) multiply(context, launch, warpColumns);
}

function multiply(
  context: KernelContext,
  { parts, blocks }: ManyLaunch<Product, number>,
  columns: number,
): void {
  const [first] = parts;
  if (!first) return;
  const { a, rows, inner } = first.call;
  context.run({
    file: 'few-rows',
    entry: 'fewRows',
    defines: {
      ...typed(a.tensor),
      ROWS: rows,
      COLUMNS: columns,
      HELD: heldOf(inner, rows + columns),
      MOST,
    },
    grid: [blocks],
    threads: [THREADS],
    arguments: [
      ...padded(
        parts.map(({ call, start }) => [
          ...[call.a.tensor, call.b.tensor, call.plus, call.y.tensor],
          ...[i32(call.columns), i32(start)],
        ]),
        none,
        MOST,
      ),
      i32(inner),
      i32(parts.length),
    ],
  });
}

/** Pieces of a row that a lane has at a time: as many each time. */
function heldOf(inner: number, vectors: number): number {
  const pieces = Math.ceil(inner / (32 * PIECE));
  const most = Math.floor(MOST_PIECES / vectors);
  return Math.ceil(pieces / Math.ceil(pieces / most));
}
