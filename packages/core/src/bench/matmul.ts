import type { Backend } from '../backend';
import type { FloatType, HostArray } from '../dtype';
import { widened } from '../io/model-folder';
import { operators } from '../ops';
import { Scope } from '../scope';
import { compareOutputs } from '../verify/comparison';
import { referenceOn } from '../verify/run-operator';
import type { Values } from '../verify/values';
import type { BenchCase, BenchSuite } from './case';
import { normalDraw, normalValues } from './fill';
import { costOfStep, prepareStep, type Step } from './operators';
import type { BenchProfile } from './profile';

/** `y [M, N]` of `a [M, K]` and weights `b [N, K]`. */
export interface Product {
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
}

/** Square products, and products of one row as decoding has them. */
export function matmulCases(
  { matrices }: BenchProfile,
  dtype: FloatType,
): BenchCase[] {
  return matrices.flatMap((side) => {
    const square = { rows: side, columns: side, inner: side };
    return [
      matmulCase('matmul', 'matmul', square, dtype),
      matmulCase('matmul', 'matmul of one row', { ...square, rows: 1 }, dtype),
    ];
  });
}

export function matmulCase(
  suite: BenchSuite,
  name: string,
  product: Product,
  dtype: FloatType,
): BenchCase {
  const { rows, columns, inner } = product;
  const step: Step = {
    operator: 'matmul',
    inputs: { a: [rows, inner], b: [columns, inner] },
    attributes,
  };
  const shape = `M ${rows}, N ${columns}, K ${inner}`;
  const compared = sampledRows(rows).length;
  return {
    suite,
    name,
    dtype,
    shape,
    check: {
      key: `matmul ${shape} ${dtype}`,
      on: compared < rows ? `same shapes, ${compared} rows` : 'same shapes',
      judge: (backend, reference) => judge(backend, reference, product, dtype),
    },
    cost: async () => costOfStep(step, dtype),
    prepare: async (backend) =>
      prepareStep(backend, step, dtype, costOfStep(step, dtype)),
  };
}

const attributes: Step['attributes'] & { readonly transposeB: boolean } = {
  transposeB: true,
};

/** The first and the last row, and some between them. */
function sampledRows(rows: number): number[] {
  const wanted = [0, 1, 0.17, 0.34, 0.55, 0.71, 0.89].map((share) =>
    Math.floor(share * (rows - 1)),
  );
  return [...new Set(wanted)].sort((a, b) => a - b);
}

/** The whole product on the backend; some of its rows on the reference. */
async function judge(
  backend: Backend,
  reference: Backend,
  { rows, columns, inner }: Product,
  dtype: FloatType,
) {
  const scope = new Scope(backend);
  try {
    const inputs = {
      a: normalDraw(scope, [rows, inner], dtype, 1),
      b: normalDraw(scope, [columns, inner], dtype, 2),
    };
    const { y } = scope.run(operators.matmul, inputs, attributes);
    const got = rowsOf(await scope.read(y), columns, dtype, rows);
    const drawn = normalValues([rows, inner], dtype, 1);
    const sampled = {
      a: rowsOf(drawn.data, inner, dtype, rows),
      b: normalValues([columns, inner], dtype, 2),
    };
    const oracle = referenceOn(reference);
    const want = await oracle('matmul', sampled, attributes);
    const call = { inputs: sampled, attributes };
    return compareOutputs('matmul', { y: got }, want, dtype, call);
  } finally {
    scope.free();
  }
}

/** The sampled rows of a matrix `[rows, width]`. */
function rowsOf(
  data: HostArray,
  width: number,
  dtype: FloatType,
  rows: number,
): Values {
  const sampled = sampledRows(rows);
  const values = new Float64Array(sampled.length * width);
  for (const [i, row] of sampled.entries()) {
    const raw = data.subarray(row * width, (row + 1) * width);
    const type = raw instanceof Float64Array ? 'f64' : dtype;
    values.set(widened({ dtype: type, data: raw }), i * width);
  }
  return { shape: [sampled.length, width], dtype, data: values };
}
