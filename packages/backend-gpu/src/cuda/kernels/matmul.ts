import type { Tensor } from '@asa/core';
import type { Product } from '../products';
import { addInto } from './add';
import {
  extent,
  type KernelContext,
  type Kernels,
  type ManyKernels,
} from './context';
import { areAlike, hasFewRows, multiplyFewRows } from './few-rows';

type Call = Parameters<ManyKernels<'matmul'>['matmul']>[0][number];

/** y[i, j] = sum over k of a[i, k] b[k, j], and plus[i, j] where there is one */
export const matmulKernels = (context: KernelContext): Kernels<'matmul'> => ({
  matmul(inputs, outputs, attributes) {
    multiply(context, productOf({ inputs, outputs, attributes }));
  },
});

export const matmulMany = (context: KernelContext): ManyKernels<'matmul'> => ({
  /** Neighbours of few rows that are alike share a launch. */
  matmul(calls) {
    let alike: Product[] = [];
    const flush = () => {
      if (alike.length > 0) multiplyFewRows(context, alike);
      alike = [];
    };
    for (const call of calls) {
      const product = productOf(call);
      if (product.y.tensor.size === 0) continue;
      const isFew = product.inner > 0 && hasFewRows(product);
      const [first] = alike;
      if (!isFew || (first && !areAlike(first, product))) flush();
      if (isFew) alike.push(product);
      else multiply(context, product);
    }
    flush();
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
  const { y, plus } = product;
  const { tensor } = y;
  if (isSome(product)) {
    if (hasFewRows(product)) multiplyFewRows(context, [product]);
    else context.product(product);
  } else if (tensor.size > 0) {
    context.clear(tensor);
    if (plus) addInto(context, tensor, plus, tensor);
  }
}

/** Whether there are elements and terms. */
const isSome = ({ y, inner }: Product) => y.tensor.size > 0 && inner > 0;

function rowsOf({ shape }: Tensor): number {
  return shape.slice(0, -1).reduce((product, n) => product * n, 1);
}
