import { ArgumentError } from '../errors';
import type { Sequences } from '../sequences';
import type { Tensor, TensorSpec } from '../tensor';
import type { InputGradients, Operator, Rules, SpecsOf } from './operator';

/**
 * What every attention reads. Head i of H reads key and value head
 * `floor(i / (H / G))`, so G = H is multi-head, G < H grouped, G = 1
 * multi-query. The rotary channels may stand apart: the score is
 * `(q . k + qRope . kRope) * scale`, `kRope` shared by all heads. In absorbed
 * latent attention `k` and `v` are the same tensor.
 */
export interface AttentionOperands {
  /** `[Nq, H, Dk]` */
  readonly q: Tensor;
  /** `[Nk, G, Dk]` */
  readonly k: Tensor;
  /** `[Nk, G, Dv]` */
  readonly v: Tensor;
  /** `[Nq, H, dR]` */
  readonly qRope?: Tensor | undefined;
  /** `[Nk, 1, dR]` */
  readonly kRope?: Tensor | undefined;
}

/** What a backward pass reads: the call, its results and the gradient of `o`. */
export interface AttentionResults {
  /** `[Nq, H, Dv]` */
  readonly o: Tensor;
  /** `[Nq, H]`, natural logarithm; -inf where nothing was visible. */
  readonly lse: Tensor;
  /** `[Nq, H, Dv]` */
  readonly dO: Tensor;
  /** `[Nq, H, Dk]`: is added to dQ, as the gradient of other uses of q. */
  readonly plus?: Tensor | undefined;
  /** `[Nq, H]`: dO . o of each row, where it is known. */
  readonly delta?: Tensor | undefined;
}

export interface AttentionGradients {
  readonly dQ: Tensor;
  readonly dK: Tensor;
  readonly dV: Tensor;
  readonly dQRope?: Tensor | undefined;
  readonly dKRope?: Tensor | undefined;
}

/** Extents of checked operands, in the letters of maths.md. */
export interface AttentionExtents {
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly groups: number;
  readonly valueWidth: number;
  readonly dtype: 'f64' | 'f32' | 'f16' | 'bf16';
}

/** Checks the operands against each other. */
export function checkOperands(
  rules: Rules,
  { q, k, v, qRope, kRope }: SpecsOf<AttentionOperands>,
): AttentionExtents {
  const dtype = rules.floats({ q, k, v, qRope, kRope });
  const [queries, heads, width] = rules.extents('q', q, 3);
  const [keys, groups] = rules.extents('k', k, 3);
  rules.shape('k', k, [keys, groups, width]);
  const [, , valueWidth] = rules.extents('v', v, 3);
  rules.shape('v', v, [keys, groups, valueWidth]);
  rules.positive('the width of q', width);
  rules.positive('the width of v', valueWidth);
  rules.divides('groups', 'heads', groups, heads);
  checkRotary(rules, { qRope, kRope }, { queries, heads, keys });
  return { queries, keys, heads, groups, valueWidth, dtype };
}

/** Both rotary operands or none, of one width. */
export function checkRotary(
  rules: Rules,
  { qRope, kRope }: Pick<SpecsOf<AttentionOperands>, 'qRope' | 'kRope'>,
  {
    queries,
    heads,
    keys,
  }: Pick<AttentionExtents, 'queries' | 'heads' | 'keys'>,
): void {
  if (!qRope && !kRope) return;
  const both = 'the other rotary operand';
  const q = rules.present('qRope', qRope, both);
  const k = rules.present('kRope', kRope, both);
  const [, , rotary] = rules.extents('qRope', q, 3);
  rules.shape('qRope', q, [queries, heads, rotary]);
  rules.shape('kRope', k, [keys, 1, rotary]);
}

/** `o` and `lse` of checked operands. */
function resultSpecs(extents: AttentionExtents): {
  o: TensorSpec;
  lse: TensorSpec;
} {
  const { queries, heads, valueWidth, dtype } = extents;
  return {
    o: { shape: [queries, heads, valueWidth], dtype },
    lse: {
      shape: [queries, heads],
      dtype: dtype === 'f64' ? 'f64' : 'f32',
    },
  };
}

/** Checks what is no operand of the forward pass; gradients have its shapes. */
function gradientSpecs(
  rules: Rules,
  operands: SpecsOf<AttentionOperands & AttentionResults>,
  extents: AttentionExtents,
): SpecsOf<AttentionGradients> {
  const { o, lse } = resultSpecs(extents);
  rules.shape('o', operands.o, o.shape);
  rules.shape('dO', operands.dO, o.shape);
  rules.shape('lse', operands.lse, lse.shape);
  rules.statistic('lse', operands.lse, extents.dtype);
  const { q, k, v, qRope, kRope, plus, delta } = operands;
  if (delta) {
    rules.shape('delta', delta, lse.shape);
    rules.statistic('delta', delta, extents.dtype);
  }
  if (plus) {
    rules.shape('plus', plus, q.shape);
    rules.floats({ q, plus });
  }
  const like = ({ shape, dtype }: TensorSpec) => ({ shape, dtype });
  return {
    dQ: like(q),
    dK: like(k),
    dV: like(v),
    ...(qRope && kRope && { dQRope: like(qRope), dKRope: like(kRope) }),
  };
}

/** Renames `dQ` to `q` and so on, as the tape expects. */
function byOperand(gradients: AttentionGradients) {
  return {
    q: gradients.dQ,
    k: gradients.dK,
    v: gradients.dV,
    qRope: gradients.dQRope,
    kRope: gradients.dKRope,
  };
}

export function checkScale(rules: Rules, scale: number): void {
  rules.finite('scale', scale);
  if (scale <= 0) {
    throw new ArgumentError(
      `${rules.operator}: scale must be positive, got ${scale}`,
    );
  }
}

/** An attention, and its backward pass. */
export type AttentionPair<Inputs extends AttentionOperands, Attributes> = {
  readonly forward: Operator<
    Inputs,
    Pick<AttentionResults, 'o' | 'lse'>,
    Attributes
  >;
  readonly backward: Operator<
    Inputs & AttentionResults,
    AttentionGradients,
    Attributes
  >;
};

/**
 * What all attentions have in common. `check` refuses bad operands and gives
 * their extents; which keys a query sees is the kernels' business.
 */
export function attentionPair<
  Inputs extends AttentionOperands,
  Attributes extends { readonly sequences: Sequences },
>(
  rules: Rules,
  check: (inputs: SpecsOf<Inputs>, attributes: Attributes) => AttentionExtents,
): AttentionPair<Inputs, Attributes> {
  const backward: AttentionPair<Inputs, Attributes>['backward'] = {
    name: `${rules.operator}Backward`,
    infer(inputs, attributes) {
      rules.selfAttention(attributes.sequences);
      const operands = inputs as SpecsOf<AttentionOperands & AttentionResults>;
      return gradientSpecs(rules, operands, check(inputs, attributes));
    },
  };
  const forward: AttentionPair<Inputs, Attributes>['forward'] = {
    name: rules.operator,
    infer: (inputs, attributes) => resultSpecs(check(inputs, attributes)),
    gradient(scope, call) {
      const { inputs, outputs, attributes, gradients } = call;
      if (!gradients.o) return {};
      rules.selfAttention(attributes.sequences);
      const known = { plus: call.accumulated('q'), delta: call.products('o') };
      const operands = { ...inputs, ...outputs, dO: gradients.o, ...known };
      return byOperand(
        scope.run(backward, operands, attributes),
      ) as InputGradients<Inputs>;
    },
  };
  return { forward, backward };
}
