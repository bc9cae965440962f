import { ShapeError } from '../errors';
import { formatShape, type Shape, type Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('matmul');

export interface MatmulAttributes {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/**
 * `y = A B`, sums in f32 or better. `a [..., M, K]` counts as the matrix of
 * its last axis and all others flattened; `b` has two axes. A linear layer
 * with weights `[out, in]` is `transposeB`; `transposeA` gives `[K, N]` from
 * `a [M, K]`, `b [M, N]`.
 */
export const matmul: Operator<
  { a: Tensor; b: Tensor },
  { y: Tensor },
  MatmulAttributes
> = {
  name: 'matmul',
  infer({ a, b }, { transposeA = false, transposeB = false }) {
    const dtype = rules.floats({ a, b });
    const [rows, columns] = flatten(a.shape);
    const [b0, b1] = rules.extents('b', b, 2);
    const inner = transposeA ? rows : columns;
    if (inner !== (transposeB ? b1 : b0)) {
      throw new ShapeError(
        `matmul: the inner extents must agree, got a ${formatShape(a.shape)}${transposeA ? ' transposed' : ''} and b ${formatShape(b.shape)}${transposeB ? ' transposed' : ''}`,
      );
    }
    const outer = transposeA ? [columns] : a.shape.slice(0, -1);
    return { y: { shape: [...outer, transposeB ? b0 : b1], dtype } };
  },
  gradient(scope, { inputs, attributes, gradients, wants }) {
    const dy = gradients.y;
    if (!dy) return {};
    const { a, b } = inputs;
    const { transposeA = false, transposeB = false } = attributes;
    const product = (x: Tensor, y: Tensor, tx: boolean, ty: boolean) =>
      scope.run(
        matmul,
        { a: asMatrix(x), b: asMatrix(y) },
        { transposeA: tx, transposeB: ty },
      ).y;
    return {
      a: !wants('a')
        ? undefined
        : transposeA
          ? product(b, dy, transposeB, true)
          : product(dy, b, false, !transposeB),
      b: !wants('b')
        ? undefined
        : transposeB
          ? product(dy, a, true, transposeA)
          : product(a, dy, !transposeA, false),
    };
  },
};

function flatten(shape: Shape): [rows: number, columns: number] {
  if (shape.length === 0) {
    throw new ShapeError('matmul: a must have at least one axis, got []');
  }
  const columns = shape.at(-1) ?? 0;
  const rows = shape.slice(0, -1).reduce((product, n) => product * n, 1);
  return [rows, columns];
}

function asMatrix(tensor: Tensor): Tensor {
  return tensor.reshape(flatten(tensor.shape));
}
