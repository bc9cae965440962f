import { type Floats, floats, type Kernels } from './operands';
import { type Matrix, product, transposed } from './product';

export const headMatmulKernels: Kernels<
  'headMatmul' | 'headMatmulBackwardInput' | 'headMatmulBackwardWeight'
> = {
  /** y[n, i] = W[i] x[n, g(i)] */
  headMatmul({ x, w }, { y }, { transposeWeight = false }) {
    const [heads = 0] = w.shape;
    const [, groups = 1] = x.shape;
    for (let i = 0; i < heads; i++) {
      const g = Math.floor(i / (heads / groups));
      product(
        headColumns(x.shape, floats(x), g),
        transposed(headWeight(w.shape, floats(w), i, transposeWeight)),
        headColumns(y.shape, floats(y), i),
      );
    }
  },

  /** dx[n, g] = sum over heads i of g of W[i]^T dy[n, i] */
  headMatmulBackwardInput({ dy, w }, { dx }, { transposeWeight = false }) {
    const [heads = 0] = w.shape;
    const [rows = 0, groups = 1, width = 0] = dx.shape;
    const share = heads / groups;
    const out = floats(dx);
    const part = new Float64Array(rows * width);
    for (let g = 0; g < groups; g++) {
      const sum = new Float64Array(rows * width);
      for (let i = g * share; i < (g + 1) * share; i++) {
        product(
          headColumns(dy.shape, floats(dy), i),
          headWeight(w.shape, floats(w), i, transposeWeight),
          headColumns([rows, 1, width], part, 0),
        );
        for (let n = 0; n < sum.length; n++) {
          sum[n] = (sum[n] as number) + (part[n] as number);
        }
      }
      for (let n = 0; n < rows; n++) {
        const row = sum.subarray(n * width, (n + 1) * width);
        out.set(row, (n * groups + g) * width);
      }
    }
  },

  /** dW[i] = sum over n of dy[n, i] x[n, g(i)]^T */
  headMatmulBackwardWeight({ x, dy }, { dw }, { transposeWeight = false }) {
    const [heads = 0] = dw.shape;
    const [, groups = 1] = x.shape;
    for (let i = 0; i < heads; i++) {
      const g = Math.floor(i / (heads / groups));
      product(
        transposed(headColumns(dy.shape, floats(dy), i)),
        headColumns(x.shape, floats(x), g),
        headWeight(dw.shape, floats(dw), i, transposeWeight),
      );
    }
  },
};

/** One head of `[N, H, D]`, as the matrix `[N, D]`. */
function headColumns(
  [rows = 0, heads = 0, width = 0]: readonly number[],
  data: Floats,
  head: number,
): Matrix {
  return {
    data,
    start: head * width,
    rows,
    columns: width,
    down: heads * width,
    across: 1,
  };
}

/** W[i], `[M, K]`, stored as such or, when `isTransposed`, as `[K, M]`. */
function headWeight(
  [, rows = 0, columns = 0]: readonly number[],
  data: Floats,
  head: number,
  isTransposed: boolean,
): Matrix {
  const start = head * rows * columns;
  const stored = { data, start, rows, columns, down: columns, across: 1 };
  return isTransposed ? transposed(stored) : stored;
}
