import { u32 } from '../launch';
import { extent, type KernelContext, type Kernels } from './context';
import { gemm, type Layout } from './gemm';

export const headMatmulKernels = (
  context: KernelContext,
): Kernels<
  'headMatmul' | 'headMatmulBackwardInput' | 'headMatmulBackwardWeight'
> => ({
  /** y[n, i] = W[i] x[n, g(i)], one product a head i */
  headMatmul({ x, w }, { y }, { transposeWeight = false }) {
    const [rows, groups, inner] = [extent(x, 0), extent(x, 1), extent(x, 2)];
    const [, heads, columns] = [0, extent(y, 1), extent(y, 2)];
    gemm(context, {
      a: x,
      b: w,
      y,
      layouts: {
        a: {
          name: `group${inner % 4}`,
          index: '(row * u.groups + batch / u.share) * u.inner + column',
          contiguous: 'row',
          aligned: inner % 4 === 0,
        },
        b: transposeWeight
          ? {
              name: `weight${columns % 4}`,
              index: '(batch * u.inner + row) * u.columns + column',
              contiguous: 'row',
              aligned: columns % 4 === 0,
            }
          : {
              name: `weightT${inner % 4}`,
              index: '(batch * u.columns + column) * u.inner + row',
              contiguous: 'column',
              aligned: inner % 4 === 0,
            },
        y: head(columns),
      },
      batches: heads,
      rows,
      columns,
      inner,
      uniforms: { groups: u32(groups), share: u32(heads / groups) },
    });
  },

  /**
   * dx[n, g] = sum over heads i of g of W[i]^T dy[n, i]: one product a group,
   * its inner index the channels of all the group's heads.
   */
  headMatmulBackwardInput({ dy, w }, { dx }, { transposeWeight = false }) {
    const [rows, groups, columns] = [
      extent(dx, 0),
      extent(dx, 1),
      extent(dx, 2),
    ];
    const [, heads, width] = [0, extent(dy, 1), extent(dy, 2)];
    const share = heads / groups;
    gemm(context, {
      a: dy,
      b: w,
      y: dx,
      layouts: {
        a: {
          name: `group${(share * width) % 4}`,
          index: '(row * u.batches + batch) * u.inner + column',
          contiguous: 'row',
          aligned: (share * width) % 4 === 0,
        },
        b: transposeWeight
          ? {
              name: `weightT${width % 4}`,
              index:
                '((batch * u.share + row / u.width) * u.columns + column) * u.width + row % u.width',
              contiguous: 'column',
              aligned: width % 4 === 0,
              isBent: true,
            }
          : {
              name: `weight${columns % 4}`,
              index: '(batch * u.inner + row) * u.columns + column',
              contiguous: 'row',
              aligned: columns % 4 === 0,
            },
        y: head(columns),
      },
      batches: groups,
      rows,
      columns,
      inner: share * width,
      uniforms: { share: u32(share), width: u32(width) },
    });
  },

  /** dW[i] = sum over n of dy[n, i] x[n, g(i)]^T, transposed where w is */
  headMatmulBackwardWeight({ x, dy }, { dw }, { transposeWeight = false }) {
    const [inner, groups, width] = [extent(x, 0), extent(x, 1), extent(x, 2)];
    const [, heads, m] = [0, extent(dy, 1), extent(dy, 2)];
    // Rows of y are channels of dy, or of x: then the operands change places.
    const byHead = (isColumn: boolean): Layout => ({
      name: `byHead${isColumn}${m % 4}`,
      index: isColumn
        ? '(row * u.heads + batch) * u.columns + column'
        : '(column * u.heads + batch) * u.rows + row',
      contiguous: isColumn ? 'row' : 'column',
      aligned: m % 4 === 0,
    });
    const byGroup = (isColumn: boolean): Layout => ({
      name: `byGroup${isColumn}${width % 4}`,
      index: isColumn
        ? '(row * u.groups + batch / u.share) * u.columns + column'
        : '(column * u.groups + batch / u.share) * u.rows + row',
      contiguous: isColumn ? 'row' : 'column',
      aligned: width % 4 === 0,
    });
    const columns = transposeWeight ? m : width;
    gemm(context, {
      ...(transposeWeight ? { a: x, b: dy } : { a: dy, b: x }),
      y: dw,
      layouts: {
        ...(transposeWeight
          ? { a: byGroup(false), b: byHead(true) }
          : { a: byHead(false), b: byGroup(true) }),
        y: {
          name: `matrix${columns % 4}`,
          index: '(batch * u.rows + row) * u.columns + column',
          contiguous: 'row',
          aligned: columns % 4 === 0,
        },
      },
      batches: heads,
      rows: transposeWeight ? width : m,
      columns,
      inner,
      uniforms: {
        heads: u32(heads),
        groups: u32(groups),
        share: u32(heads / groups),
      },
    });
  },
});

/** One head of `[N, H, D]`: the batch is the head. */
function head(width: number): Layout {
  return {
    name: `head${width % 4}`,
    index: '(row * u.batches + batch) * u.columns + column',
    contiguous: 'row',
    aligned: width % 4 === 0,
  };
}
