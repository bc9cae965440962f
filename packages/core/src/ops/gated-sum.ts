import type { Tensor } from '../tensor';
import { type Operator, Rules, type SpecsOf, statisticType } from './operator';

const rules = new Rules('gatedSum');
type None = Record<string, never>;

/** Branch outputs `[N, H, D]` and their gates' logits, in this order. */
export interface GatedSumOperands {
  /** `[N, H, branches]` */
  readonly gates: Tensor;
  /** `[H, branches]` */
  readonly bias?: Tensor | undefined;
  readonly compressed: Tensor;
  readonly selected: Tensor;
  readonly window?: Tensor | undefined;
}

/**
 * `y[n, i] = sum over branches of sigmoid(gates[n, i, branch] + bias) o_branch`,
 * one scalar a head and branch, not normalised.
 * Source: maths.md §3, gates; NSA, arXiv 2502.11089, equation 5.
 */
export const gatedSum: Operator<GatedSumOperands, { y: Tensor }, None> = {
  name: 'gatedSum',
  infer: (inputs) => ({ y: check(inputs) }),
  gradient(scope, { inputs, gradients, tellProducts }) {
    if (!gradients.y) return {};
    const d = scope.run(gatedSumBackward, { ...inputs, dY: gradients.y }, {});
    tellProducts('compressed', d.deltaCompressed);
    tellProducts('selected', d.deltaSelected);
    if (d.deltaWindow) tellProducts('window', d.deltaWindow);
    return {
      gates: d.dGates,
      bias: d.dBias,
      compressed: d.dCompressed,
      selected: d.dSelected,
      window: d.dWindow,
    };
  },
};

/**
 * The gradients, and of each branch's its product with the branch, `[N, H]`, which
 * the backward pass of an attention wants: of the gradient, rounded as it is stored
 * or not.
 */
export const gatedSumBackward: Operator<
  GatedSumOperands & { readonly dY: Tensor },
  {
    dGates: Tensor;
    dBias?: Tensor | undefined;
    dCompressed: Tensor;
    dSelected: Tensor;
    dWindow?: Tensor | undefined;
    deltaCompressed: Tensor;
    deltaSelected: Tensor;
    deltaWindow?: Tensor | undefined;
  },
  None
> = {
  name: 'gatedSumBackward',
  infer(inputs) {
    const branch = check(inputs);
    rules.shape('dY', inputs.dY, branch.shape);
    const { gates, bias, window } = inputs;
    const { dtype, shape } = branch;
    const delta = { shape: shape.slice(0, 2), dtype: statisticType(dtype) };
    return {
      dGates: { shape: gates.shape, dtype },
      ...(bias && { dBias: { shape: bias.shape, dtype } }),
      dCompressed: branch,
      dSelected: branch,
      ...(window && { dWindow: branch, deltaWindow: delta }),
      deltaCompressed: delta,
      deltaSelected: delta,
    };
  },
};

function check(inputs: SpecsOf<GatedSumOperands>) {
  const { gates, bias, compressed, selected, window } = inputs;
  const dtype = rules.floats({ compressed, selected, window, gates, bias });
  const [rows, heads] = rules.extents('compressed', compressed, 3);
  const { shape } = compressed;
  rules.shape('selected', selected, shape);
  if (window) rules.shape('window', window, shape);
  const branches = window ? 3 : 2;
  rules.shape('gates', gates, [rows, heads, branches]);
  if (bias) rules.shape('bias', bias, [heads, branches]);
  return { shape, dtype };
}
