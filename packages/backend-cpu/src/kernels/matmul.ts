import { type Kernels, readable, store, writable } from './operands';
import { dense, product, transposed } from './product';

/** Elements of `b` widened at a time: large weights are never there twice. */
const SLAB = 2 ** 18;

export const matmulKernels: Kernels<'matmul'> = {
  /** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] where there is one */
  matmul(inputs, outputs, { transposeA = false, transposeB = false }) {
    const { a, b, plus } = inputs;
    const columns = a.shape.at(-1) ?? 0;
    const rows = a.shape.slice(0, -1).reduce((size, n) => size * n, 1);
    const matrix = dense(readable(a), rows, columns);
    const left = transposeA ? transposed(matrix) : matrix;

    const [bRows = 0, bColumns = 0] = b.shape;
    const values = writable(outputs.y);
    const y = dense(values, left.rows, transposeB ? bRows : bColumns);
    if (transposeB) {
      // Weights [out, in]: some rows of b give some columns of y.
      const step = Math.max(1, Math.floor(SLAB / Math.max(1, bColumns)));
      for (let from = 0; from < bRows; from += step) {
        const count = Math.min(step, bRows - from);
        const end = from + count;
        const slab = readable(b, from * bColumns, end * bColumns);
        const right = transposed(dense(slab, count, bColumns));
        product(left, right, { ...y, start: from, columns: count });
      }
    } else {
      product(left, dense(readable(b), bRows, bColumns), y);
    }
    if (plus) {
      const other = readable(plus);
      for (let i = 0; i < values.length; i++) {
        values[i] = (values[i] as number) + (other[i] as number);
      }
    }
    store(values, outputs.y);
  },
};
