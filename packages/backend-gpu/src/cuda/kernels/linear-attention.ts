import type { Sequences, Tensor } from '@asa/core';
import { f32, i32 } from '../launch';
import { columnSum } from './column-sum';
import { extent, type KernelContext, type Kernels, typed } from './context';

/** As in the kernel: four threads share a row. */
const THREADS = 128;
const ROWS = THREADS / 4;
/** Every so manyth row's state is kept; as in the kernel. */
const MARKED = 64;
/** Columns that four lanes hold in registers. */
const MOST_COLUMNS = 4 * 64;

export const linearAttentionKernels = (
  context: KernelContext,
): Kernels<'linearAttention' | 'linearAttentionBackward'> => ({
  /**
   * S_t = a_t S_{t-1} + k_t v_t^T
   * o_t = scale S_t^T q_t
   */
  linearAttention(inputs, { o, last }, attributes) {
    const { q, k, v, decay, bias, state } = inputs;
    scan(context, attributes, {
      across: v,
      along: k,
      read: q,
      decay,
      bias,
      result: o,
      state,
      last,
    });
  },

  /**
   * dS_t = a_{t+1} dS_{t+1} + scale q_t dO_t^T
   * dQ_t = scale S_t dO_t,  dK_t = dS_t v_t,  dV_t = dS_t^T k_t
   */
  linearAttentionBackward(inputs, outputs, attributes) {
    const { q, k, v, decay, bias, dO } = inputs;
    const { dQ, dK, dV, dDecay, dBias } = outputs;
    // Unrounded: the decay's gradient is their difference, and small.
    const fineQ = context.scratch(q.size, 'f32');
    const fineK = context.scratch(k.size, 'f32');
    const terms = context.scratch(decay.size, 'f32');
    const { sequences, temperature } = attributes;
    const [heads, width] = [extent(q, 1), extent(q, 2)];
    const size = width * extent(v, 2);
    // Of S before a row, and of dS from there on.
    const marks = Math.floor(extent(q, 0) / MARKED) + 1;
    const before = context.scratch(marks * heads * size, 'f32');
    const behind = context.scratch(marks * heads * size, 'f32');
    const run = (call: Omit<Scan, 'decay' | 'bias'>) =>
      scan(context, attributes, { ...call, decay, bias });
    run({
      ...{ across: k, along: v, read: dO, result: dQ, fine: fineQ },
      marked: before,
    });
    run({
      ...{ across: q, along: dO, read: v, result: dK, fine: fineK },
      ...{ marked: behind, backwards: true },
    });
    run({ across: dO, along: q, read: k, result: dV, backwards: true });
    context.clear(terms);
    context.clear(dDecay);
    context.run({
      file: 'linear-attention',
      entry: 'linearDecay',
      defines: { ...typed(q), PLACES: places(width) },
      grid: [1, heads, sequences.count],
      threads: [32],
      arguments: [
        q,
        k,
        fineQ,
        fineK,
        sequences.on(q.backend),
        ...decayFields(decay, bias, temperature),
        ...[before, behind, i32(size), f32(attributes.scale)],
        ...[dDecay, terms, i32(width)],
      ],
    });
    if (dBias) columnSum(context, terms, extent(decay, 0), heads, dBias);
    for (const x of [fineQ, fineK, terms, before, behind]) x.free();
  },
});

interface Attributes {
  readonly sequences: Sequences;
  readonly scale: number;
  readonly temperature: number;
}

interface Scan {
  /** `[N, H, X]`: u, of which each row of Z keeps a channel x. */
  readonly across: Tensor;
  /** `[N, H, Y]`: w. */
  readonly along: Tensor;
  /** `[N, H, Y]`: r. */
  readonly read: Tensor;
  readonly decay: Tensor;
  readonly bias?: Tensor | undefined;
  /** `[N, H, X]` */
  readonly result: Tensor;
  /** The result again, in f32. */
  readonly fine?: Tensor;
  /**
   * Z before each `MARKED`th row, on the way back from it on:
   * `[N / MARKED + 1, H, Y, X]`
   */
  readonly marked?: Tensor;
  /** Z before and behind, `[S, H, Y, X]`. */
  readonly state?: Tensor | undefined;
  readonly last?: Tensor;
  /** Z_t = a_{t+1} Z_{t+1} + u_t w_t^T */
  readonly backwards?: boolean;
}

function scan(
  context: KernelContext,
  { sequences, scale, temperature }: Attributes,
  call: Scan,
): void {
  const { across, along, read, decay, bias, result, fine, state, last } = call;
  const [heads, x, y] = [
    extent(across, 1),
    extent(across, 2),
    extent(along, 2),
  ];
  context.clear(result);
  if (fine) context.clear(fine);
  context.run({
    file: 'linear-attention',
    entry: 'linearScan',
    defines: { ...typed(across), PLACES: places(y) },
    grid: [Math.ceil(x / ROWS), heads, sequences.count],
    threads: [THREADS],
    arguments: [
      across,
      along,
      read,
      sequences.on(across.backend),
      state,
      last,
      fine,
      call.marked,
      result,
      i32(x),
      i32(y),
      f32(scale),
      i32(call.backwards ? 1 : 0),
      ...decayFields(decay, bias, temperature),
    ],
  });
}

/** The kernels' structure `Decay`; decay is `[N, H]`. */
function decayFields(
  decay: Tensor,
  bias: Tensor | undefined,
  temperature: number,
) {
  return [decay, bias, f32(temperature), i32(extent(decay, 1))] as const;
}

/** Registers that a lane needs for `columns`: powers of two, few kernels. */
function places(columns: number): number {
  return Math.max(4, 2 ** Math.ceil(Math.log2(columns / 4)));
}

/** Why a width cannot be scanned. */
export function reasonAgainstWidth(
  name: string,
  width: number,
): string | undefined {
  return width > MOST_COLUMNS
    ? `the width of ${name} must be at most ${MOST_COLUMNS}, got ${width}`
    : undefined;
}
