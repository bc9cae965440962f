import { program } from '../program';
import { add } from './add';
import { extent, type KernelContext, type Kernels } from './context';

/** y[i, j], a thread for each: j is `this.thread.x`, i is `this.thread.y`. */
function product(name: string, a: string, b: string) {
  return program(
    name,
    { arrays: ['a', 'b'], integers: ['rows', 'inner', 'columns'] },
    `let sum = 0;
  for (let k = 0; k < inner; k++) {
    sum += a[${a}] * b[${b}];
  }
  return sum;`,
  );
}

const byRow = {
  a: 'this.thread.y * inner + k',
  b: 'k * columns + this.thread.x',
};
const byColumn = {
  a: 'k * rows + this.thread.y',
  b: 'this.thread.x * inner + k',
};

/** By whether a and b are transposed. */
const products = [
  [
    product('matmul', byRow.a, byRow.b),
    product('matmulTransposeB', byRow.a, byColumn.b),
  ],
  [
    product('matmulTransposeA', byColumn.a, byRow.b),
    product('matmulTransposeBoth', byColumn.a, byColumn.b),
  ],
] as const;

export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  /** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] */
  matmul({ a, b, plus }, { y }, { transposeA = false, transposeB = false }) {
    const [plain, turned] = products[transposeA ? 1 : 0];
    const inner = extent(b, transposeB ? 1 : 0);
    const columns = extent(b, transposeB ? 0 : 1);
    const rows = columns === 0 ? 0 : y.size / columns;
    const called = transposeB ? turned : plain;
    const values = { a, b, rows, inner, columns };
    context.run(called, values, y, [columns, rows]);
    if (plus) context.run(add, { a: y, b: plus }, y, [y.size]);
  },
});
