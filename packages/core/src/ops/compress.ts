import type { Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import { type Operator, Rules, type SpecsOf } from './operator';

const rules = new Rules('compress');

/** How rows are cut into compression blocks. */
export interface BlockAttributes {
  readonly sequences: Sequences;
  /** `l`: rows of a block. */
  readonly length: number;
  /** `d`: rows from one block's start to the next; divides `l`. */
  readonly stride: number;
}

/**
 * Pools the rows `[b d, b d + l)` of each sequence into block row b, for every
 * block that is whole: `y_b = sum_m w_m x_{b d + m}`, with `w = 1 / l`, or
 * `w = softmax(logits)` where logits `[G, l]` are given. `x [Nk, G, D]`,
 * `y [NB, G, D]`. Source: maths.md §3, `mean` and `weighted`.
 */
export const compress: Operator<
  { x: Tensor; logits?: Tensor | undefined },
  { y: Tensor },
  BlockAttributes
> = {
  name: 'compress',
  infer({ x, logits }, attributes) {
    const dtype = rules.floats({ x, logits });
    const [groups, width] = checkBlocks(rules, x, attributes);
    if (logits) rules.shape('logits', logits, [groups, attributes.length]);
    const rows = attributes.sequences.blockRows(attributes);
    return { y: { shape: [rows, groups, width], dtype } };
  },
  gradient(scope, { inputs, attributes, gradients }) {
    if (!gradients.y) return {};
    const { dX, dLogits } = scope.run(
      compressBackward,
      { ...inputs, dY: gradients.y },
      attributes,
    );
    return { x: dX, logits: dLogits };
  },
};

export const compressBackward: Operator<
  { x: Tensor; logits?: Tensor | undefined; dY: Tensor },
  { dX: Tensor; dLogits?: Tensor | undefined },
  BlockAttributes
> = {
  name: 'compressBackward',
  infer({ x, logits, dY }, attributes) {
    const dtype = rules.floats({ x, logits, dY });
    const [groups, width] = checkBlocks(rules, x, attributes);
    const rows = attributes.sequences.blockRows(attributes);
    rules.shape('dY', dY, [rows, groups, width]);
    return {
      dX: { shape: x.shape, dtype },
      ...(logits && { dLogits: { shape: logits.shape, dtype } }),
    };
  },
};

/**
 * Lays the rows of each whole block side by side, with a learned bias for the
 * position inside the block: `y[b, g] = concat_m (x[b d + m, g] + bias[g, m])`.
 * `x [Nk, G, D]`, `bias [G, l, D]`, `y [NB, G, l D]`; with a `headMatmul` behind
 * it, the `linear` and `mlp` compressions of maths.md §3.
 */
export const unfoldBlocks: Operator<
  { x: Tensor; bias?: Tensor | undefined },
  { y: Tensor },
  BlockAttributes
> = {
  name: 'unfoldBlocks',
  infer({ x, bias }, attributes) {
    const dtype = rules.floats({ x, bias });
    const [groups, width] = checkBlocks(rules, x, attributes);
    const { length, sequences } = attributes;
    if (bias) rules.shape('bias', bias, [groups, length, width]);
    const rows = sequences.blockRows(attributes);
    return { y: { shape: [rows, groups, length * width], dtype } };
  },
  gradient(scope, { inputs: { x, bias }, attributes, gradients }) {
    if (!gradients.y) return {};
    const { dX, dBias } = scope.run(
      unfoldBlocksBackward,
      { dY: gradients.y },
      { ...attributes, keyRows: x.shape[0] ?? 0, bias: bias !== undefined },
    );
    return { x: dX, bias: dBias };
  },
};

export const unfoldBlocksBackward: Operator<
  { dY: Tensor },
  { dX: Tensor; dBias?: Tensor | undefined },
  BlockAttributes & { readonly keyRows: number; readonly bias: boolean }
> = {
  name: 'unfoldBlocksBackward',
  infer({ dY }, { sequences, length, stride, keyRows, bias }) {
    const dtype = rules.floats({ dY });
    const [rows, groups, unfolded] = rules.extents('dY', dY, 3);
    rules.rows('dY', rows, sequences.blockRows({ length, stride }));
    rules.divides('length', 'the width of dY', length, unfolded);
    const width = unfolded / length;
    return {
      dX: { shape: [keyRows, groups, width], dtype },
      ...(bias && { dBias: { shape: [groups, length, width], dtype } }),
    };
  },
};

/** `l`, `d` and the row count fit; returns groups and width of x. */
function checkBlocks(
  rules: Rules,
  x: SpecsOf<{ x: Tensor }>['x'],
  { sequences, length, stride }: BlockAttributes,
): [groups: number, width: number] {
  const [rows, groups, width] = rules.extents('x', x, 3);
  checkBlocking(rules, length, stride);
  rules.rows('x', rows, sequences.keyRows);
  return [groups, width];
}

export function checkBlocking(
  rules: Rules,
  length: number,
  stride: number,
): void {
  rules.positive('length', length);
  rules.positive('stride', stride);
  rules.divides('stride', 'length', stride, length);
}
