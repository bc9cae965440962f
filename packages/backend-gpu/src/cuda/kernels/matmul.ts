import type { Tensor } from '@asa/core';
import type { Product } from '../products';
import { addInto } from './add';
import {
  extent,
  type KernelContext,
  type Kernels,
  type ManyKernels,
} from './context';
import { hasFewRows, multiplyFewRows } from './few-rows';

type Call = Parameters<ManyKernels<'matmul'>['matmul']>[0][number];

/** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] where there is one */
export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  matmul(inputs, outputs, attributes) {
    matmulMany(context).matmul([{ inputs, outputs, attributes }]);
  },
});

export const matmulMany = (context: KernelContext): ManyKernels<'matmul'> => ({
  /** Those of few rows share launches. */
  matmul(calls) {
    multiplyAll(context, calls.map(productOf));
  },
});

function productOf({ inputs, outputs: { y }, attributes }: Call): Product {
  const { a, b, plus } = inputs;
  const { transposeA = false, transposeB = false } = attributes;
  const aColumns = extent(a, -1);
  const aRows = rowsOf(a);
  const [rows, inner] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
  const columns = extent(b, transposeB ? 0 : 1);
  return {
    a: { tensor: a, pitch: aColumns, isTransposed: transposeA },
    b: { tensor: b, pitch: extent(b, 1), isTransposed: transposeB },
    y: { tensor: y, pitch: columns },
    plus,
    rows,
    columns,
    inner,
  };
}

/** A product into all of `y`; `plus` or zeros where it has no terms. */
export function multiply(context: KernelContext, product: Product): void {
  multiplyAll(context, [product]);
}

function multiplyAll(
  context: KernelContext,
  products: readonly Product[],
): void {
  multiplyFewRows(context, products.filter(hasFewRows));
  for (const product of products) {
    const { y, plus, inner } = product;
    const { tensor } = y;
    if (tensor.size === 0 || hasFewRows(product)) continue;
    if (inner > 0) {
      context.product(product);
      continue;
    }
    context.clear(tensor);
    if (plus) addInto(context, tensor, plus, tensor);
  }
}

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
