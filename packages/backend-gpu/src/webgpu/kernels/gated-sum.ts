import type { Tensor } from '@asa/core';
import { flat, input, output, u32 } from '../launch';
import { columnSum } from './column-sum';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  reductions,
  sigmoid,
  unroll,
} from './context';
import { rowProducts } from './row-products';

const THREADS = 64;

export const gatedSumKernels = (
  context: KernelContext,
): Kernels<'gatedSum' | 'gatedSumBackward'> => ({
  /** y[n, i] = sum over branches of sigmoid(gates[n, i, branch] + bias) o */
  gatedSum({ gates, bias, compressed, selected, window }, { y }) {
    const branches = window ? 3 : 2;
    const heads = extent(y, 1);
    context.run({
      kernel: 'gatedSum',
      constants: { BRANCHES: branches },
      bindings: {
        gates: input(gates),
        bias: bias && input(bias),
        o0: input(compressed),
        o1: input(selected),
        o2: window && input(window),
        y: output(y),
      },
      uniforms: {
        count: u32(y.size),
        heads: u32(heads),
        width: u32(extent(y, 2)),
      },
      ...elementwise(
        y.size,
        () => `let row = i / u.width;
var sum = 0.0;
${unroll(branches, (n) => `sum += gate(row, ${n}u) * f32(o${n}[i]);`)}
y[i] = t_y(sum);`,
        () => `${sigmoid}\n${gate(bias)}`,
      ),
    });
  },

  /**
   * dO = g dY
   * dGates = g (1 - g) (dY . o),  dBias = sum over n of dGates,  delta = dO . o
   */
  gatedSumBackward(inputs, outputs) {
    const { gates, bias, compressed, selected, window, dY } = inputs;
    const { dGates, dBias, dCompressed, dSelected, dWindow } = outputs;
    const branches = window ? 3 : 2;
    const [rows, heads, width] = [extent(dY, 0), extent(dY, 1), extent(dY, 2)];
    const terms = dBias && context.scratch(gates.size, 'f32');
    context.run({
      kernel: 'gatedSumBackward',
      constants: { BRANCHES: branches },
      bindings: {
        gates: input(gates),
        bias: bias && input(bias),
        o0: input(compressed),
        o1: input(selected),
        o2: window && input(window),
        dY: input(dY),
        dGates: output(dGates),
        d0: output(dCompressed),
        d1: output(dSelected),
        d2: dWindow && output(dWindow),
        terms: terms && output(terms),
      },
      uniforms: {
        rows: u32(rows * heads),
        heads: u32(heads),
        width: u32(width),
      },
      grid: flat(rows * heads),
      source: () => ({
        threads: THREADS,
        declarations: `${reductions(THREADS)}\n${sigmoid}\n${gate(bias)}`,
        body: `let row = group.x + group.y * groups.x;
if (row >= u.rows) { return; }
${unroll(
  branches,
  (n) => `{
  let g = gate(row, ${n}u);
  var dot = 0.0;
  for (var c = tid; c < u.width; c += ${THREADS}u) {
    let d = f32(dY[row * u.width + c]);
    dot += d * f32(o${n}[row * u.width + c]);
    d${n}[row * u.width + c] = t_d${n}(g * d);
  }
  let d = g * (1.0 - g) * reduceSum(tid, dot);
  if (tid == 0u) {
    dGates[row * BRANCHES + ${n}u] = t_dGates(d);
    ${terms ? `terms[row * BRANCHES + ${n}u] = d;` : ''}
  }
}`,
)}`,
      }),
    });
    // Its own pass over a branch: one more binding for each is more than many
    // devices have.
    const products = [
      [dCompressed, compressed, outputs.deltaCompressed],
      [dSelected, selected, outputs.deltaSelected],
      [dWindow, window, outputs.deltaWindow],
    ] as const;
    for (const [gradient, o, delta] of products) {
      if (gradient && o && delta) rowProducts(context, gradient, o, delta);
    }
    if (terms && dBias) {
      columnSum(context, terms, rows, heads * branches, dBias);
      terms.free();
    }
  },
});

const gate = (
  bias: Tensor | undefined,
) => `fn gate(row: u32, branch: u32) -> f32 {
  return sigmoid(f32(gates[row * BRANCHES + branch])${bias ? ' + f32(bias[(row % u.heads) * BRANCHES + branch])' : ''});
}`;
