import type { DType, FloatType } from '../dtype';
import type { OperatorName } from '../ops';
import { blockCount, type Sequences } from '../sequences';
import type { TensorSpec } from '../tensor';
import { rootMeanSquare, roundoff, type Values } from './values';

/**
 * How far a result may be from the one computed in double on the same inputs.
 *
 * Every value is a sum of terms, so its error is measured against the size
 * that the sum has when its terms do not cancel: `magnitude`, or the result's
 * own root mean square where that is larger. Against that size
 *
 *     rms error <= growth u + rounds u16,    largest error <= 4 times that
 *
 * `u` is the error of one rounding in the type that sums are made in (f32, or
 * f64 where everything is), `u16` that of the 16-bit operands' type. `growth`
 * counts the roundings that add up on the way, `rounds` how often the value,
 * or a factor of it, is stored in 16 bits.
 */
interface Tolerance {
  readonly growth: number | ((call: Call) => number);
  readonly rounds: number;
  /** Roundings to 16 bits behind an f32 result; none as a rule. */
  readonly statisticRounds?: number;
  /** Size of each output, by name, without cancellation. */
  readonly magnitude?: (call: Call) => Readonly<Record<string, number>>;
}

/** What the size of a result depends on. */
export interface Call {
  readonly inputs: Readonly<Record<string, Values>>;
  readonly attributes: unknown;
}

/** Values are moved, or rounded once to nearest even: no bit may differ. */
const exact: Tolerance = { growth: 0, rounds: 0 };

// A sequential f32 sum of n terms of random sign loses about 0.3 sqrt(n) u of
// its size, one of the 1,031 terms of the longest cases about 10 u.
const sum = 16;
const longest = 1031;

/** The same for sums of more terms than any case has: models' are longer. */
const sumOf = (terms: number) => sum * Math.sqrt(Math.max(1, terms / longest));

// WGSL's exp may lose 3 + 2|x| ulp, and an error e of a score is a relative
// error e of its exponential; scores here reach 10.
const softmax = 64;

/** The one table: operator by arithmetic. */
const table: Readonly<Record<OperatorName, Tolerance>> = {
  gatherRows: exact,
  scatterRows: exact,
  cast: exact,

  matmul: {
    growth: ({ inputs: { a }, attributes }) =>
      sumOf(
        flag(attributes, 'transposeA')
          ? size(a) / Math.max(1, last(a))
          : last(a),
      ),
    rounds: 1,
    magnitude: ({ inputs: { a, b }, attributes }) => ({
      y:
        product(a, b) *
        Math.sqrt(
          flag(attributes, 'transposeA')
            ? size(a) / last(a)
            : Math.max(1, last(a)),
        ),
    }),
  },
  headMatmul: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { x, w } }) => ({
      y: product(x, w) * Math.sqrt(last(x)),
    }),
  },
  headMatmulBackwardInput: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { dy, w } }) => ({
      dx: product(dy, w) * Math.sqrt(last(dy)),
    }),
  },
  headMatmulBackwardWeight: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { x, dy } }) => ({
      dw: product(x, dy) * Math.sqrt(rows(x)),
    }),
  },
  gatherRowsBackward: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { dy } }) => ({ dx: rms(dy) }),
  },
  add: { growth: 1, rounds: 1 },

  // Mean, root and two products; the row's length 129.
  rmsNorm: { growth: 8, rounds: 1 },
  rmsNormBackward: {
    growth: sum,
    rounds: 1,
    magnitude: normMagnitudes,
  },
  // An angle is a rounded product: an error of u times the angle itself.
  rope: {
    growth: ({ inputs: { positions, frequencies } }) =>
      8 + largest(positions) * largest(frequencies),
    rounds: 1,
  },
  // 1 / (1 + exp(-x)) for |x| up to 5.
  swiglu: { growth: 32, rounds: 1 },
  swigluBackward: {
    growth: 32,
    rounds: 1,
    magnitude: ({ inputs: { gate, up, dy } }) => ({
      dGate: rms(dy) * (up ? rms(up) : 1),
      dUp: product(gate, dy),
    }),
  },
  crossEntropy: {
    growth: softmax,
    rounds: 0,
    magnitude: ({ inputs: { logits } }) => {
      const lse = largest(logits) + Math.log(Math.max(1, last(logits)));
      return { loss: lse, lse };
    },
  },
  crossEntropyBackward: {
    growth: softmax,
    rounds: 1,
    magnitude: ({ inputs: { logits, dLoss } }) => ({
      dLogits: rms(dLoss) / Math.sqrt(Math.max(1, last(logits))),
    }),
  },

  // Probabilities in 16 bits before they meet the values, then the result.
  attention: { growth: softmax, rounds: 2, magnitude: attentionMagnitudes },
  compressedAttention: {
    growth: softmax,
    rounds: 2,
    magnitude: attentionMagnitudes,
  },
  selectedAttention: {
    growth: softmax,
    rounds: 2,
    magnitude: attentionMagnitudes,
  },
  // Probabilities, their gradients, and the result; two exponentials deep.
  attentionBackward: {
    growth: 2 * softmax,
    rounds: 3,
    magnitude: attentionGradients,
  },
  compressedAttentionBackward: {
    growth: 2 * softmax,
    rounds: 3,
    magnitude: attentionGradients,
  },
  selectedAttentionBackward: {
    growth: 2 * softmax,
    rounds: 3,
    magnitude: attentionGradients,
  },

  compress: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { x }, attributes }) => ({
      y: rms(x) / Math.sqrt(number(attributes, 'length')),
    }),
  },
  compressBackward: {
    growth: softmax,
    rounds: 1,
    magnitude: ({ inputs: { x, dY }, attributes }) => {
      const length = number(attributes, 'length');
      const overlap = length / number(attributes, 'stride');
      return {
        dX: (rms(dY) * Math.sqrt(overlap)) / length,
        dLogits:
          (product(x, dY) * Math.sqrt(Math.max(1, rows(dY)) * last(x))) /
          length,
      };
    },
  },
  unfoldBlocks: { growth: 1, rounds: 1 },
  unfoldBlocksBackward: {
    growth: sum,
    rounds: 1,
    magnitude: ({ inputs: { dY } }) => ({
      dX: rms(dY),
      dBias: rms(dY) * Math.sqrt(Math.max(1, rows(dY))),
    }),
  },
  // Scores reach 40 where the scale is 4.
  blockImportance: { growth: 4 * softmax, rounds: 0 },
  // Lists are compared by their scores: see selection-rule.
  selectBlocks: exact,

  gatedSum: {
    growth: 32,
    rounds: 1,
    magnitude: ({ inputs: { compressed } }) => ({ y: rms(compressed) }),
  },
  gatedSumBackward: {
    growth: 32,
    rounds: 1,
    // A sum of products with gradients that are stored in 16 bits. Each is off
    // by 0.42 u16 at the root mean square, and by u16 at most: what is one such
    // value is never further off than one round allows, but of sums one in 50
    // is, and the only one that a call of one row has may be that.
    statisticRounds: 2,
    magnitude: gatedGradients,
  },
  // Sums of up to 64 logarithms of decays in an exponent; a chunk's factors
  // are 16-bit operands of matrix products, the f32 state's too.
  linearAttention: {
    growth: 2 * softmax,
    rounds: 3,
    statisticRounds: 3,
    magnitude: ({ inputs: { q, k, v, state }, attributes }) => {
      const entry = product(k, v) + (state ? rms(state) : 0);
      const scale = number(attributes, 'scale') * Math.sqrt(last(k));
      return { o: scale * rms(q) * entry, last: entry };
    },
  },
  linearAttentionBackward: {
    growth: 4 * softmax,
    rounds: 4,
    magnitude: linearGradients,
  },
  squaredNorm: { growth: sum, rounds: 0 },
  // Shares of a sum of exponentials.
  sample: { growth: softmax, rounds: 0 },
  // At step 1 the bias correction 1 - 0.95 loses 20 u in f32.
  adamw: {
    growth: 32,
    rounds: 1,
    magnitude: ({ inputs: { parameter, m, v } }) => ({
      parameter: rms(parameter),
      rounded: rms(parameter),
      m: rms(m),
      v: rms(v),
    }),
  },
};

/** Largest single error, as a multiple of the allowed root mean square. */
const peak = 4;

/** Half of f16's distance from 0 to the next number. */
const leastRounding = 2 ** -25;

/** What is allowed of one output: both absolute. */
export interface Allowance {
  readonly rms: number;
  readonly max: number;
}

/** @param dtype of the operands. */
export function allowance(
  operator: OperatorName,
  output: string,
  want: Values,
  dtype: FloatType,
  call: Call,
): Allowance {
  const entry = table[operator];
  const relative = relativeError(entry, want, dtype, call);
  const magnitude = entry.magnitude?.(call)[output] ?? 0;
  // Below f16's normal numbers a rounding no longer shrinks with the value.
  const least = want.dtype === 'f16' ? leastRounding : 0;
  return {
    rms: relative * Math.max(rootMeanSquare(want.data), magnitude) + least,
    max: peak * relative * Math.max(largest(want), magnitude) + least,
  };
}

/** The allowed error of a sum, as a share of its size. */
export function relativeTolerance(
  operator: OperatorName,
  dtype: FloatType,
  output: TensorSpec,
  call: Call,
): number {
  return relativeError(table[operator], output, dtype, call);
}

function relativeError(
  { growth, rounds, statisticRounds = 0 }: Tolerance,
  output: { readonly dtype: DType },
  dtype: FloatType,
  call: Call,
): number {
  const count = typeof growth === 'number' ? growth : growth(call);
  const arithmetic = dtype === 'f64' ? roundoff.f64 : roundoff.f32;
  const isHalf = dtype === 'f16' || dtype === 'bf16';
  const isStatistic = output.dtype === 'f32';
  const stored = isHalf ? roundoff[dtype] : 0;
  return count * arithmetic + (isStatistic ? statisticRounds : rounds) * stored;
}

/** Operators whose results are the oracle's, rounded once. */
export function isExact(operator: OperatorName): boolean {
  return table[operator] === exact;
}

function attentionMagnitudes({ inputs, attributes }: Call) {
  const { q, k, v } = inputs;
  const score = number(attributes, 'scale') * product(q, k);
  return {
    o: rms(v) / Math.sqrt(mostKeys(inputs, attributes)),
    lse: 1 + score * Math.sqrt(last(q)),
  };
}

/** `dS = p (dP - delta)`: both terms have the size of `dO . v`. */
function attentionGradients({ inputs, attributes }: Call) {
  const { q, k, v, dO, qRope, kRope } = inputs;
  const dS =
    (number(attributes, 'scale') * product(dO, v) * Math.sqrt(last(v))) /
    Math.sqrt(mostKeys(inputs, attributes));
  const perGroup = Math.sqrt((q?.shape[1] ?? 1) / (k?.shape[1] ?? 1));
  return {
    dQ: dS * rms(k),
    dK: dS * rms(q) * perGroup,
    dV: (rms(dO) * perGroup) / Math.sqrt(mostKeys(inputs, attributes)),
    dQRope: dS * rms(kRope),
    dKRope: dS * rms(qRope) * Math.sqrt(q?.shape[1] ?? 1),
  };
}

/** Keys that the query with the longest view sees. */
function mostKeys(
  inputs: Readonly<Record<string, Values>>,
  attributes: unknown,
): number {
  const { sequences, window, length, stride, blockSize } = attributes as {
    readonly sequences: Sequences;
    readonly window?: number;
    readonly length?: number;
    readonly stride?: number;
    readonly blockSize?: number;
  };
  const keys = sequences.maxKeys;
  const listed = (inputs.indices?.shape[2] ?? 1) * (blockSize ?? keys);
  const blocks =
    length !== undefined && stride !== undefined
      ? blockCount(keys, { length, stride })
      : keys;
  return Math.max(1, Math.min(keys, window ?? keys, listed, blocks));
}

/** `dO = g dY`, `delta = dO . o` and `dGates = g (1 - g) dY . o` of each branch. */
function gatedGradients({ inputs }: Call) {
  const { gates, bias, compressed, selected, window, dY } = inputs;
  const width = Math.max(1, last(dY));
  const branches = Math.max(1, last(gates));
  const gate = (product(compressed, dY) * Math.sqrt(width)) / 4;
  const sizesOf = (o: Maybe, branch: number) => {
    const gradient = Float64Array.from(dY?.data ?? [], (dy, i) => {
      const at = Math.floor(i / width) * branches + branch;
      const shift = bias?.data[at % size(bias)] ?? 0;
      return dy / (1 + Math.exp(-(gates?.data[at] ?? 0) - shift));
    });
    const terms = gradient.map((dO, i) => dO * (o?.data[i] ?? 0));
    return {
      gradient: rootMeanSquare(gradient),
      delta: rootMeanSquare(terms) * Math.sqrt(width),
    };
  };
  const ofCompressed = sizesOf(compressed, 0);
  const ofSelected = sizesOf(selected, 1);
  const ofWindow = sizesOf(window, 2);
  return {
    dGates: gate,
    dBias: gate * Math.sqrt(Math.max(1, rows(dY))),
    dCompressed: ofCompressed.gradient,
    dSelected: ofSelected.gradient,
    dWindow: ofWindow.gradient,
    deltaCompressed: ofCompressed.delta,
    deltaSelected: ofSelected.delta,
    deltaWindow: ofWindow.delta,
  };
}

function normMagnitudes({ inputs: { x, weight, dy } }: Call) {
  const width = Math.max(1, last(x));
  const data = x?.data ?? [];
  let inverse = 0;
  for (let row = 0; row < data.length; row += width) {
    const own = rootMeanSquare(data.slice(row, row + width));
    inverse += 1 / (own * own + 1e-6);
  }
  const count = Math.max(1, data.length / width);
  return {
    dx: Math.sqrt(inverse / count) * product(weight, dy),
    dWeight: rms(dy) * Math.sqrt(size(x) / Math.max(1, size(weight))),
  };
}

function linearGradients({ inputs: { q, k, v, dO }, attributes }: Call) {
  const scale = number(attributes, 'scale');
  const [keyWidth, valueWidth] = [last(k), last(v)];
  const all = scale * rms(q) * product(k, v) * rms(dO);
  const decay =
    (all * Math.sqrt(keyWidth * valueWidth)) /
    number(attributes, 'temperature');
  return {
    dQ: scale * product(k, v) * rms(dO) * Math.sqrt(valueWidth),
    dK: scale * product(q, v) * rms(dO) * Math.sqrt(valueWidth),
    dV: scale * product(q, k) * rms(dO) * Math.sqrt(keyWidth),
    dDecay: decay,
    dBias: decay * Math.sqrt(Math.max(1, rows(q))),
  };
}

type Maybe = Values | undefined;

const rms = (values: Maybe) => rootMeanSquare(values?.data ?? []);
const product = (a: Maybe, b: Maybe) => rms(a) * rms(b);
const last = (values: Maybe) => values?.shape.at(-1) ?? 1;
const rows = (values: Maybe) => values?.shape[0] ?? 1;
const size = (values: Maybe) => values?.data.length ?? 0;

function largest(values: Maybe): number {
  let result = 0;
  for (const value of values?.data ?? []) {
    if (Number.isFinite(value)) result = Math.max(result, Math.abs(value));
  }
  return result;
}

const number = (attributes: unknown, name: string) =>
  (attributes as Readonly<Record<string, number>>)[name] ?? 1;
const flag = (attributes: unknown, name: string) =>
  (attributes as Readonly<Record<string, boolean>>)[name] ?? false;
