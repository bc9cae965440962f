import { i32 } from '../launch';
import type { Product } from '../products';
import { type KernelContext, PIECE, typed } from './context';
import { launchesOf, type ManyLaunch, padded } from './many';

/** As in the kernel. */
const THREADS = 256;
const WARPS = THREADS / 32;
/** Products of a launch. */
const MOST = 8;
/** Weights, in elements, behind which cuBLASLt is faster, by rows. */
const MOST_WEIGHTS = [0, 2 ** 25, 2 ** 25, 5 * 2 ** 20, 5 * 2 ** 20];
/** Pieces that a lane holds, of 16 bytes: 96 registers of 128. */
const MOST_PIECES = 24;
/**
 * Columns of a multiprocessor behind which a warp has two at a time: then there
 * are warps enough to keep memory busy, and rows of `a` are read half as often.
 */
const MANY_COLUMNS = 32;

const none = [
  ...[undefined, undefined, undefined, undefined],
  ...[i32(0), i32(0), i32(0), i32(0)],
];

/**
 * Whether the kernel takes a product: weights `[out, in]`, or those of groups one
 * behind the other, of 16-bit elements in whole pieces, not too many. In f32, which
 * takes twice the registers, cuBLASLt goes on.
 */
export function hasFewRows({ a, b, y, ...product }: Product): boolean {
  const { rows, columns, inner, batches = 1 } = product;
  const areGroups =
    a.batchStride === inner &&
    b.batchStride === columns * inner &&
    y.batchStride === columns;
  return (
    inner > 0 &&
    inner % PIECE === 0 &&
    batches * columns * inner <= (MOST_WEIGHTS[rows] ?? 0) &&
    a.tensor.dtype !== 'f32' &&
    !a.isTransposed &&
    b.isTransposed === true &&
    (batches === 1 || areGroups) &&
    a.pitch === batches * inner &&
    b.pitch === inner &&
    y.pitch === batches * columns
  );
}

/** Columns of all groups. */
const columnsOf = ({ columns, batches = 1 }: Product) => columns * batches;

/** Whether two such products may share a launch. */
const areAlike = (a: Product, b: Product): boolean =>
  a.rows === b.rows &&
  a.inner === b.inner &&
  a.a.tensor.dtype === b.a.tensor.dtype;

/** Neighbours that are alike share a launch; those of no columns have none. */
export function multiplyFewRows(
  context: KernelContext,
  products: readonly Product[],
): void {
  const all = products.reduce((sum, product) => sum + columnsOf(product), 0);
  const many = MANY_COLUMNS * context.facts.multiprocessors;
  // A warp's columns are of one group.
  const arePairs = products.every(
    ({ columns, batches = 1 }) => batches === 1 || columns % 2 === 0,
  );
  const columns = arePairs && all > many ? 2 : 1;
  const launches = launchesOf(products, areAlike, columnsOf, {
    each: WARPS * columns,
    most: MOST,
  });
  for (const launch of launches) launchParts(context, launch, columns);
}

/** @param columns a warp's. */
function launchParts(
  context: KernelContext,
  { first, parts, blocks }: ManyLaunch<Product>,
  columns: number,
): void {
  const { a, rows, inner } = first;
  const products = parts.map(({ call, start }) => [
    ...[call.a.tensor, call.b.tensor, call.plus, call.y.tensor],
    ...[columnsOf(call), call.columns, call.a.pitch, start].map(i32),
  ]);
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
    startsEarly: true,
    arguments: [...padded(products, none, MOST), i32(inner), i32(parts.length)],
  });
}

/**
 * Pieces of a vector that a lane holds at a time, as many each time.
 * @param vectors rows and columns of a warp.
 */
function heldOf(inner: number, vectors: number): number {
  const pieces = Math.ceil(inner / (32 * PIECE));
  const most = Math.floor(MOST_PIECES / vectors);
  return Math.ceil(pieces / Math.ceil(pieces / most));
}
