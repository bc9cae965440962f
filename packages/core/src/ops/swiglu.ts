import type { Tensor } from '../tensor';
import { type Operator, Rules } from './operator';

const rules = new Rules('swiglu');
type None = Record<string, never>;

/**
 * `y = silu(gate) * up`, `silu(x) = x sigmoid(x)`; without `up`, `silu(gate)`
 * alone. Equal shapes. Source: arXiv 2002.05202.
 */
export const swiglu: Operator<
  { gate: Tensor; up?: Tensor },
  { y: Tensor },
  None
> = {
  name: 'swiglu',
  infer({ gate, up }) {
    const dtype = rules.floats({ gate, up });
    if (up) rules.shape('up', up, gate.shape);
    return { y: { shape: gate.shape, dtype } };
  },
  gradient(scope, { inputs, gradients }) {
    if (!gradients.y) return {};
    const { dGate, dUp } = scope.run(
      swigluBackward,
      { ...inputs, dy: gradients.y },
      {},
    );
    return { gate: dGate, up: dUp };
  },
};

export const swigluBackward: Operator<
  { gate: Tensor; up?: Tensor; dy: Tensor },
  { dGate: Tensor; dUp?: Tensor },
  None
> = {
  name: 'swigluBackward',
  infer({ gate, up, dy }) {
    const dtype = rules.floats({ gate, up, dy });
    if (up) rules.shape('up', up, gate.shape);
    rules.shape('dy', dy, gate.shape);
    const spec = { shape: gate.shape, dtype };
    return { dGate: spec, ...(up && { dUp: spec }) };
  },
};
