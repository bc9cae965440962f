import type { Floats } from './operands';

/** A matrix in an array: element (i, j) is `data[start + i down + j across]`. */
export interface Matrix {
  readonly data: Floats;
  readonly start: number;
  readonly rows: number;
  readonly columns: number;
  readonly down: number;
  readonly across: number;
}

/** A row-major matrix that fills an array. */
export function dense(data: Floats, rows: number, columns: number): Matrix {
  return { data, start: 0, rows, columns, down: columns, across: 1 };
}

/** The same elements with rows and columns exchanged. */
export function transposed(matrix: Matrix): Matrix {
  const { data, start, rows, columns, down, across } = matrix;
  return {
    data,
    start,
    rows: columns,
    columns: rows,
    down: across,
    across: down,
  };
}

/**
 * `y = a b`. Every sum runs over the inner index in order, in double, rounded
 * once: an element has the same bits whatever the other rows and columns are.
 */
export function product(a: Matrix, b: Matrix, y: Matrix): void {
  if (b.down === 1 && a.rows < 2 * TILE) dots(a, b, y);
  else if (a.rows < TILE) rowSums(a, b, y);
  else tiles(a, b, y);
}

const TILE = 4;
/** Columns of `b` packed at a time: a strip stays in the second-level cache. */
const STRIP = 128;

/**
 * Tiles of 4 x 4 sums, which fit the registers. V8 compiles the inner loop
 * well when it sees one element type and reads forward, so both operands are
 * packed into doubles.
 */
function tiles(a: Matrix, b: Matrix, y: Matrix): void {
  const depth = a.columns;
  const left = new Float64Array(depth * TILE);
  const width = Math.min(STRIP, Math.ceil(b.columns / TILE) * TILE);
  const strip = new Float64Array(depth * width);
  const sums = new Float64Array(TILE * TILE);
  const columns = transposed(b);
  for (let first = 0; first < b.columns; first += STRIP) {
    const end = Math.min(first + STRIP, b.columns);
    for (let j = first; j < end; j += TILE) {
      pack(columns, j, strip, (j - first) * depth);
    }
    for (let i = 0; i < a.rows; i += TILE) {
      pack(a, i, left, 0);
      for (let j = first; j < end; j += TILE) {
        multiplyTile(left, strip, (j - first) * depth, sums);
        storeTile(sums, y, i, j);
      }
    }
  }
}

/** Four rows, element by element side by side; rows past the end are 0. */
function pack(
  { data, start, rows, columns, down, across }: Matrix,
  row: number,
  panel: Float64Array,
  offset: number,
): void {
  for (let i = 0; i < TILE; i++) {
    const isInside = row + i < rows;
    let from = start + (row + i) * down;
    let to = offset + i;
    for (let k = 0; k < columns; k++) {
      panel[to] = isInside ? (data[from] as number) : 0;
      from += across;
      to += TILE;
    }
  }
}

/** sums[i, j] = sum over k of a[k, i] b[offset + k, j] */
function multiplyTile(
  a: Float64Array,
  b: Float64Array,
  offset: number,
  sums: Float64Array,
): void {
  let s00 = 0;
  let s01 = 0;
  let s02 = 0;
  let s03 = 0;
  let s10 = 0;
  let s11 = 0;
  let s12 = 0;
  let s13 = 0;
  let s20 = 0;
  let s21 = 0;
  let s22 = 0;
  let s23 = 0;
  let s30 = 0;
  let s31 = 0;
  let s32 = 0;
  let s33 = 0;
  for (let p = 0, q = offset; p < a.length; p += TILE, q += TILE) {
    const b0 = b[q] as number;
    const b1 = b[q + 1] as number;
    const b2 = b[q + 2] as number;
    const b3 = b[q + 3] as number;
    const a0 = a[p] as number;
    s00 += a0 * b0;
    s01 += a0 * b1;
    s02 += a0 * b2;
    s03 += a0 * b3;
    const a1 = a[p + 1] as number;
    s10 += a1 * b0;
    s11 += a1 * b1;
    s12 += a1 * b2;
    s13 += a1 * b3;
    const a2 = a[p + 2] as number;
    s20 += a2 * b0;
    s21 += a2 * b1;
    s22 += a2 * b2;
    s23 += a2 * b3;
    const a3 = a[p + 3] as number;
    s30 += a3 * b0;
    s31 += a3 * b1;
    s32 += a3 * b2;
    s33 += a3 * b3;
  }
  sums[0] = s00;
  sums[1] = s01;
  sums[2] = s02;
  sums[3] = s03;
  sums[4] = s10;
  sums[5] = s11;
  sums[6] = s12;
  sums[7] = s13;
  sums[8] = s20;
  sums[9] = s21;
  sums[10] = s22;
  sums[11] = s23;
  sums[12] = s30;
  sums[13] = s31;
  sums[14] = s32;
  sums[15] = s33;
}

function storeTile(
  sums: Float64Array,
  { data, start, rows, columns, down, across }: Matrix,
  row: number,
  column: number,
): void {
  const height = Math.min(TILE, rows - row);
  const width = Math.min(TILE, columns - column);
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      data[start + (row + i) * down + (column + j) * across] = sums[
        i * TILE + j
      ] as number;
    }
  }
}

/**
 * Few rows of `a`, as in decoding: the columns of `b` lie in one piece each and
 * are read once, four at a time, so that four additions are under way.
 */
function dots(a: Matrix, b: Matrix, y: Matrix): void {
  const depth = a.columns;
  for (let j = 0; j < b.columns; j += TILE) {
    // Columns past the end are the last one again.
    const column = (n: number) =>
      b.start + Math.min(j + n, b.columns - 1) * b.across;
    for (let i = 0; i < a.rows; i++) {
      const to = y.start + i * y.down + j * y.across;
      const count = Math.min(TILE, b.columns - j);
      fourDots(
        [a.data, a.start + i * a.down, a.across],
        [b.data, column(0), column(1), column(2), column(3)],
        depth,
        [y.data, to, y.across, count],
      );
    }
  }
}

function fourDots(
  [a, aStart, aStep]: readonly [Floats, number, number],
  [b, b0, b1, b2, b3]: readonly [Floats, number, number, number, number],
  depth: number,
  [y, to, step, count]: readonly [Floats, number, number, number],
): void {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  for (let k = 0, p = aStart; k < depth; k++, p += aStep) {
    const x = a[p] as number;
    s0 += x * (b[b0 + k] as number);
    s1 += x * (b[b1 + k] as number);
    s2 += x * (b[b2 + k] as number);
    s3 += x * (b[b3 + k] as number);
  }
  y[to] = s0;
  if (count > 1) y[to + step] = s1;
  if (count > 2) y[to + 2 * step] = s2;
  if (count > 3) y[to + 3 * step] = s3;
}

/**
 * Few rows of `a` where the rows of `b` lie in one piece: those are read once,
 * four at a time, so that the running sums are loaded and stored less often.
 */
function rowSums(a: Matrix, b: Matrix, y: Matrix): void {
  const four = new Float64Array(TILE);
  for (let i = 0; i < a.rows; i++) {
    const sums = new Float64Array(b.columns);
    for (let k = 0; k < a.columns; k += TILE) {
      const count = Math.min(TILE, a.columns - k);
      for (let n = 0; n < count; n++) {
        const from = a.start + i * a.down + (k + n) * a.across;
        four[n] = a.data[from] as number;
      }
      if (count === TILE) addFourRows(four, b, k, sums);
      else for (let n = 0; n < count; n++) addRow(four[n] ?? 0, b, k + n, sums);
    }
    for (let j = 0; j < sums.length; j++) {
      y.data[y.start + i * y.down + j * y.across] = sums[j] as number;
    }
  }
}

/** sums[j] += x b[k, j] */
function addRow(x: number, b: Matrix, k: number, sums: Float64Array): void {
  const { data, across } = b;
  let from = b.start + k * b.down;
  for (let j = 0; j < sums.length; j++, from += across) {
    sums[j] = (sums[j] as number) + x * (data[from] as number);
  }
}

/** The same for rows k to k + 3, one after the other. */
function addFourRows(
  x: Float64Array,
  b: Matrix,
  k: number,
  sums: Float64Array,
): void {
  const { data, down, across } = b;
  const x0 = x[0] as number;
  const x1 = x[1] as number;
  const x2 = x[2] as number;
  const x3 = x[3] as number;
  let from = b.start + k * down;
  for (let j = 0; j < sums.length; j++, from += across) {
    let sum = sums[j] as number;
    sum += x0 * (data[from] as number);
    sum += x1 * (data[from + down] as number);
    sum += x2 * (data[from + 2 * down] as number);
    sum += x3 * (data[from + 3 * down] as number);
    sums[j] = sum;
  }
}
