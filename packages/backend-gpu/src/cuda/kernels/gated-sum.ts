import type { Tensor } from '@asa/core';
import { i32, i64 } from '../launch';
import { columnSum } from './column-sum';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  lanesOf,
  PIECE,
  typed,
} from './context';

interface Operands {
  readonly gates: Tensor;
  readonly bias?: Tensor | undefined;
  readonly compressed: Tensor;
  readonly selected: Tensor;
  readonly window?: Tensor | undefined;
}

export const gatedSumKernels = (
  context: KernelContext,
): Kernels<'gatedSum' | 'gatedSumBackward'> => ({
  gatedSum(inputs, { y }) {
    const width = extent(y, 2);
    const rows = extent(y, 0) * extent(y, 1);
    context.run({
      file: 'gated-sum',
      entry: 'gatedSum',
      defines: definesOf(inputs, y),
      ...elementwise(rows * Math.ceil(width / PIECE)),
      arguments: [...branches(inputs), y, i64(rows)],
    });
  },

  gatedSumBackward(inputs, outputs) {
    const { dGates, dBias, dCompressed, dSelected, dWindow } = outputs;
    const { deltaCompressed, deltaSelected, deltaWindow } = outputs;
    const { gates, dY } = inputs;
    const rows = extent(dY, 0) * extent(dY, 1);
    const lanes = lanesOf(extent(dY, 2));
    const terms = dBias && context.scratch(gates.size, 'f32');
    context.run({
      file: 'gated-sum',
      entry: 'gatedSumBackward',
      defines: { ...definesOf(inputs, dY), LANES: lanes },
      ...elementwise(rows * lanes),
      arguments: [
        ...branches(inputs),
        dY,
        dGates,
        dCompressed,
        dSelected,
        dWindow,
        deltaCompressed,
        deltaSelected,
        deltaWindow,
        terms,
        i64(rows),
      ],
    });
    if (!terms || !dBias) return;
    columnSum(context, terms, extent(dY, 0), dBias.size, dBias);
    terms.free();
  },
});

/** What both passes are compiled for; `y` or its gradient. */
const definesOf = ({ window }: Operands, y: Tensor) => ({
  ...typed(y),
  BRANCHES: window ? 3 : 2,
  WHOLE: extent(y, 2) % PIECE === 0 ? 1 : 0,
});

/** The kernel's structure of that name. */
function branches({ gates, bias, compressed, selected, window }: Operands) {
  return [
    gates,
    bias,
    compressed,
    selected,
    window,
    i32(extent(compressed, 1)),
    i32(extent(compressed, 2)),
  ] as const;
}
