import { AsaError, bytesPerElement, type DType, type Tensor } from '@asa/core';
import {
  type CudaPointer,
  type CudaStream,
  type LtDescriptor,
  type LtHandle,
  Out,
  type ProductLibrary,
} from './bindings';

/** cuBLASLt's numbers for types of data and of sums. */
const dataTypes: Readonly<Partial<Record<DType, number>>> = {
  f32: 0,
  f16: 2,
  bf16: 14,
};
const COMPUTE_F32 = 68;
const COMPUTE_TF32 = 77;
const SCALE_F32 = 0;

const matmulAttributes = { transposeA: 3, transposeB: 4 } as const;
const layoutAttributes = { batchCount: 5, batchStride: 6 } as const;
const preferences = {
  workspaceBytes: 1,
  reductionScheme: 3,
  alignment: { a: 5, b: 6, c: 7, d: 8 },
} as const;
/**
 * Sums that are split lie in memory in f32 and are added in a step of their
 * own: the same bits every time, and no rounding in between.
 */
const REDUCE_IN_F32 = 2;

/** `cublasLtMatmulHeuristicResult_t`: the algorithm, workspace bytes, state. */
const RESULT_BYTES = 96;
const ALGORITHM_BYTES = 64;

const MOST_PLANS = 4096;

/** A tensor's memory as a row-major matrix, the first of a batch. */
export interface Matrix {
  readonly tensor: Tensor;
  /** Elements from one row to the next. */
  readonly pitch: number;
  /** Elements from one matrix of the batch to the next. */
  readonly batchStride?: number;
  /** Stored as the transpose of what is multiplied. */
  readonly isTransposed?: boolean;
}

/** `y = a b + plus`: a `[rows, inner]`, b `[inner, columns]`. */
export interface Product {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly y: Matrix;
  /** Lies as y does; 0 when left out. */
  readonly plus?: Tensor | undefined;
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
  readonly batches?: number;
}

interface Plan {
  readonly product: LtDescriptor;
  readonly layouts: readonly [LtDescriptor, LtDescriptor, LtDescriptor];
  readonly algorithm: Uint8Array;
}

/**
 * Dense products by cuBLASLt. It thinks in columns, so it is given the
 * transposes: `y^T = b^T a^T`, which are the same memory read by columns.
 */
export class Products {
  private readonly handle: LtHandle;
  private readonly plans = new Map<string, Plan>();
  private readonly one = Float32Array.of(1);
  private readonly zero = Float32Array.of(0);

  constructor(
    private readonly lt: ProductLibrary,
    private readonly stream: CudaStream,
    private readonly workspace: {
      readonly pointer: CudaPointer;
      readonly bytes: number;
    },
    /** Lets f32 products use the tensor cores, with 10 bits of mantissa. */
    private readonly allowTf32: boolean,
    private readonly addressOf: (tensor: Tensor) => CudaPointer,
  ) {
    const out = new Out();
    this.check('cublasLtCreate', lt.cublasLtCreate(out.memory));
    this.handle = out.take();
  }

  run(product: Product): void {
    const { addressOf } = this;
    const plan = this.plan(product);
    const [first, second, result] = plan.layouts;
    const { plus } = product;
    const y = addressOf(product.y.tensor);
    const status = this.lt.cublasLtMatmul(
      this.handle,
      plan.product,
      this.one,
      addressOf(product.b.tensor),
      first,
      addressOf(product.a.tensor),
      second,
      plus ? this.one : this.zero,
      plus ? addressOf(plus) : y,
      result,
      y,
      result,
      plan.algorithm,
      this.workspace.pointer,
      this.workspace.bytes,
      this.stream,
    );
    this.check('cublasLtMatmul', status);
  }

  destroy(): void {
    this.dropPlans();
    this.lt.cublasLtDestroy(this.handle);
  }

  /** The algorithm is chosen once a shape: the same shape, the same bits. */
  private plan(product: Product): Plan {
    const key = keyOf(product);
    let plan = this.plans.get(key);
    if (!plan) {
      if (this.plans.size >= MOST_PLANS) this.dropPlans();
      plan = this.create(product);
      this.plans.set(key, plan);
    }
    return plan;
  }

  private create(product: Product): Plan {
    const { a, b, y, rows, columns, inner } = product;
    const descriptor = this.descriptor(product);
    const layouts = [
      this.layout(product, b, inner, columns),
      this.layout(product, a, rows, inner),
      this.layout(product, y, rows, columns),
    ] as const;
    const preference = this.preference(product);
    const results = new Uint8Array(RESULT_BYTES);
    const found = new Out();
    const [first, second, result] = layouts;
    const status = this.lt.cublasLtMatmulAlgoGetHeuristic(
      this.handle,
      descriptor,
      first,
      second,
      result,
      result,
      preference,
      1,
      results,
      found.memory,
    );
    this.lt.cublasLtMatmulPreferenceDestroy(preference);
    this.check('cublasLtMatmulAlgoGetHeuristic', status);
    if (found.takeInt() === 0) {
      throw new AsaError(
        `internal: cuda: cuBLASLt has no algorithm for ${y.tensor.dtype} [${rows}, ${inner}] by [${inner}, ${columns}]`,
      );
    }
    const algorithm = results.slice(0, ALGORITHM_BYTES);
    return { product: descriptor, layouts, algorithm };
  }

  private descriptor({ a, b }: Product): LtDescriptor {
    const { lt } = this;
    const out = new Out();
    const isTf32 = a.tensor.dtype === 'f32' && this.allowTf32;
    const compute = isTf32 ? COMPUTE_TF32 : COMPUTE_F32;
    const created = lt.cublasLtMatmulDescCreate(out.memory, compute, SCALE_F32);
    this.check('cublasLtMatmulDescCreate', created);
    const descriptor = out.take<LtDescriptor>();
    for (const [attribute, matrix] of [
      [matmulAttributes.transposeA, b],
      [matmulAttributes.transposeB, a],
    ] as const) {
      const value = Int32Array.of(matrix.isTransposed ? 1 : 0);
      const status = lt.cublasLtMatmulDescSetAttribute(
        descriptor,
        attribute,
        value,
        4,
      );
      this.check('cublasLtMatmulDescSetAttribute', status);
    }
    return descriptor;
  }

  /** A row-major matrix `[rows, columns]`, as multiplied, read by columns. */
  private layout(
    { batches = 1 }: Product,
    { tensor, pitch, batchStride = 0, isTransposed = false }: Matrix,
    rows: number,
    columns: number,
  ): LtDescriptor {
    const { lt } = this;
    const out = new Out();
    const [down, across] = isTransposed ? [rows, columns] : [columns, rows];
    const type = dataTypes[tensor.dtype] ?? -1;
    // One row needs no pitch, but cuBLASLt wants one that holds a column.
    const leading = Math.max(pitch, down);
    this.check(
      'cublasLtMatrixLayoutCreate',
      lt.cublasLtMatrixLayoutCreate(out.memory, type, down, across, leading),
    );
    const layout = out.take<LtDescriptor>();
    if (batches > 1) {
      const { batchCount, batchStride: stride } = layoutAttributes;
      const set = lt.cublasLtMatrixLayoutSetAttribute;
      const count = Int32Array.of(batches);
      const step = BigInt64Array.of(BigInt(batchStride));
      this.check('cublasLtMatrixLayout', set(layout, batchCount, count, 4));
      this.check('cublasLtMatrixLayout', set(layout, stride, step, 8));
    }
    return layout;
  }

  private preference({ a, b, y }: Product): LtDescriptor {
    const { lt } = this;
    const out = new Out();
    const created = lt.cublasLtMatmulPreferenceCreate(out.memory);
    this.check('cublasLtMatmulPreferenceCreate', created);
    const preference = out.take<LtDescriptor>();
    const set = (attribute: number, value: ArrayBufferView) => {
      const status = lt.cublasLtMatmulPreferenceSetAttribute(
        preference,
        attribute,
        value,
        value.byteLength,
      );
      this.check('cublasLtMatmulPreferenceSetAttribute', status);
    };
    const bytes = BigInt64Array.of(BigInt(this.workspace.bytes));
    set(preferences.workspaceBytes, bytes);
    set(preferences.reductionScheme, Uint32Array.of(REDUCE_IN_F32));
    const { alignment } = preferences;
    const aligned = (matrix: Matrix) => Uint32Array.of(alignmentOf(matrix));
    set(alignment.a, aligned(b));
    set(alignment.b, aligned(a));
    set(alignment.c, aligned(y));
    set(alignment.d, aligned(y));
    return preference;
  }

  private dropPlans(): void {
    for (const { product, layouts } of this.plans.values()) {
      this.lt.cublasLtMatmulDescDestroy(product);
      for (const layout of layouts) {
        this.lt.cublasLtMatrixLayoutDestroy(layout);
      }
    }
    this.plans.clear();
  }

  private check(call: string, status: number): void {
    if (status === 0) return;
    throw new AsaError(`cuda: ${call}: ${statusNames[status] ?? status}`);
  }
}

const statusNames: Readonly<Record<number, string>> = {
  1: 'CUBLAS_STATUS_NOT_INITIALIZED',
  3: 'CUBLAS_STATUS_ALLOC_FAILED',
  7: 'CUBLAS_STATUS_INVALID_VALUE',
  8: 'CUBLAS_STATUS_ARCH_MISMATCH',
  11: 'CUBLAS_STATUS_MAPPING_ERROR',
  13: 'CUBLAS_STATUS_EXECUTION_FAILED',
  14: 'CUBLAS_STATUS_INTERNAL_ERROR',
  15: 'CUBLAS_STATUS_NOT_SUPPORTED',
};

/**
 * The largest power of two, up to 256 bytes, that every matrix of a batch
 * starts on; tensors start on 256.
 */
function alignmentOf({ tensor, batchStride = 0 }: Matrix): number {
  const stride = batchStride * bytesPerElement[tensor.dtype];
  let alignment = 256;
  while (stride % alignment !== 0) alignment /= 2;
  return alignment;
}

/** What an algorithm is chosen by. */
function keyOf(product: Product): string {
  const { a, b, y, rows, columns, inner, batches = 1 } = product;
  const part = ({ pitch, batchStride = 0, isTransposed = false }: Matrix) =>
    `${pitch},${batchStride},${isTransposed}`;
  return `${a.tensor.dtype}|${rows},${columns},${inner},${batches}|${part(a)}|${part(b)}|${part(y)}`;
}
