import { ShapeError } from '../errors';
import { formatShape, type Shape, type Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('matmul');

export interface MatmulAttributes {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/**
 * `y = A B`, or `A B + plus`, sums in f32 or better. `a [..., M, K]` counts as
 * the matrix of its last axis and all others flattened; `b` has two axes. A
 * linear layer with weights `[out, in]` is `transposeB`; `transposeA` gives
 * `[K, N]` from `a [M, K]`, `b [M, N]`. `plus` has the shape of y: a residual
 * connection, or a gradient that grows.
 */
export const matmul: Operator<
  { a: Tensor; b: Tensor; plus?: Tensor },
  { y: Tensor },
  MatmulAttributes
> = {
  name: 'matmul',
  infer({ a, b, plus }, { transposeA = false, transposeB = false }) {
    const dtype = rules.floats({ a, b, plus });
    const [rows, columns] = flatten(a.shape);
    const [b0, b1] = rules.extents('b', b, 2);
    const inner = transposeA ? rows : columns;
    if (inner !== (transposeB ? b1 : b0)) {
      throw new ShapeError(
        `matmul: the inner extents must agree, got a ${formatShape(a.shape)}${transposeA ? ' transposed' : ''} and b ${formatShape(b.shape)}${transposeB ? ' transposed' : ''}`,
      );
    }
    const outer = transposeA ? [columns] : a.shape.slice(0, -1);
    const shape = [...outer, transposeB ? b0 : b1];
    if (plus) rules.shape('plus', plus, shape);
    return { y: { shape, dtype } };
  },
  gradient(scope, { inputs, attributes, gradients, wants, accumulated }) {
    const dy = gradients.y;
    if (!dy) return {};
    const { a, b, plus } = inputs;
    const before = (name: 'a' | 'b') => {
      const sum = accumulated(name);
      return sum && asMatrix(sum);
    };
    const { transposeA = false, transposeB = false } = attributes;
    const product = (
      of: 'a' | 'b',
      x: Tensor,
      y: Tensor,
      tx: boolean,
      ty: boolean,
    ) =>
      scope.run(
        matmul,
        { a: asMatrix(x), b: asMatrix(y), plus: before(of) },
        { transposeA: tx, transposeB: ty },
      ).y;
    return {
      a: !wants('a')
        ? undefined
        : transposeA
          ? product('a', b, dy, transposeB, true)
          : product('a', dy, b, false, !transposeB),
      b: !wants('b')
        ? undefined
        : transposeB
          ? product('b', dy, a, true, transposeA)
          : product('b', a, dy, !transposeA, false),
      plus: plus && dy,
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
