import { ArgumentError, ShapeError } from '../errors';
import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('rope');

/** Which channels turn together: `(i, i + D/2)`, or `(2i, 2i + 1)`. */
export type RopeStyle = 'half' | 'interleaved';

export interface RopeAttributes {
  readonly style: RopeStyle;
  /** Turn back by the same angle. */
  readonly inverse?: boolean;
}

/**
 * Rotary position embedding: pair i of each head turns by
 * `positions[n] * frequencies[i]`, angles in f32 or better. `x [N, H, D]` with
 * even D, `positions` i32 `[N]`, `frequencies [D/2]` in radians a token.
 * Source: RoFormer, arXiv 2104.09864, equation 34.
 */
export const rope: Operator<
  { x: Tensor; positions: Tensor; frequencies: Tensor },
  { y: Tensor },
  RopeAttributes
> = {
  name: 'rope',
  infer({ x, positions, frequencies }, { style }) {
    const dtype = rules.floats({ x });
    const [rows, , width] = rules.extents('x', x, 3);
    if (width % 2 !== 0) {
      throw new ShapeError(`rope: the width must be even, got ${width}`);
    }
    if (style !== 'half' && style !== 'interleaved') {
      throw new ArgumentError(
        `rope: style must be half or interleaved, got ${style}`,
      );
    }
    rules.indices('positions', positions);
    rules.shape('positions', positions, [rows]);
    rules.statistic('frequencies', frequencies, dtype);
    rules.shape('frequencies', frequencies, [width / 2]);
    return { y: { shape: x.shape, dtype } };
  },
  gradient(scope, { inputs, attributes, gradients }) {
    if (!gradients.y) return {};
    const { positions, frequencies } = inputs;
    return {
      x: scope.run(
        rope,
        { x: gradients.y, positions, frequencies },
        { ...attributes, inverse: !attributes.inverse },
      ).y,
    };
  },
};
