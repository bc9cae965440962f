import type { Tensor } from '@asa/core';
import { type Program, program, quotient } from '../program';
import type { KernelContext, Kernels } from './context';
import { deltas } from './softmax-attention';
import { sigmoid } from './swiglu';

const branchNames = ['compressed', 'selected', 'window'] as const;

/** Programs for some branches, with a bias or without. */
interface Programs {
  readonly forward: Program;
  /** dO = g dY, of one branch. */
  readonly branch: Program;
  readonly gates: Program;
}

/** `s = g`, of the head and branch. */
function gate(branch: string | number, branches: number, bias: boolean) {
  const slot = `Math.floor(head) * ${branches} + ${branch}`;
  const added = bias ? ` + bias[${slot}]` : '';
  return `x = gates[this.thread.y * heads * ${branches} + ${slot}]${added};`;
}

function programs(branches: number, bias: boolean): Programs {
  const name = `${branches}${bias ? 'Biased' : ''}`;
  const given = branchNames.slice(0, branches);
  const common = ['gates', ...(bias ? ['bias'] : [])];
  const head = `const head = ${quotient('this.thread.x', 'width')};`;
  const at = 'this.thread.y * heads * width + this.thread.x';
  const parts = given.map(
    (branch, number) => `${gate(number, branches, bias)}
  e = Math.exp(-Math.abs(x));
  s = e / (1 + e);
  if (x >= 0) { s = 1 / (1 + e); }
  sum += s * ${branch}[${at}];`,
  );
  return {
    forward: program(
      `gatedSum${name}`,
      { arrays: [...common, ...given], integers: ['heads', 'width'] },
      `${head}
  let x = 0.5;
  let e = 0.5;
  let s = 0.5;
  let sum = 0;
  ${parts.join('\n  ')}
  return sum;`,
    ),
    branch: program(
      `gatedSumBackward${name}`,
      { arrays: [...common, 'dY'], integers: ['heads', 'width', 'branch'] },
      `${head}
  let x = 0.5;
  ${gate('branch', branches, bias)}
  ${sigmoid}
  return s * dY[${at}];`,
    ),
    gates: program(
      `gatedSumBackwardGates${name}`,
      {
        arrays: [...common, ...given, 'dY'],
        integers: ['heads', 'width'],
      },
      `const head = ${quotient('this.thread.x', `${branches}`)};
  const branch = this.thread.x - head * ${branches};
  let x = 0.5;
  ${gate('Math.floor(branch)', branches, bias)}
  ${sigmoid}
  let dot = 0;
  for (let c = 0; c < width; c++) {
    let o = 0.5;
    ${given
      .map(
        (name, number) => `if (branch === ${number}) {
      o = ${name}[(this.thread.y * heads + Math.floor(head)) * width + c];
    }`,
      )
      .join('\n    ')}
    dot += o * dY[(this.thread.y * heads + Math.floor(head)) * width + c];
  }
  return s * (1 - s) * dot;`,
    ),
  };
}

/** dBias = sum over n of dGates */
const biasGradient = program(
  'gatedSumBackwardBias',
  { arrays: ['dGates'], integers: ['rows', 'columns'] },
  `let sum = 0;
  for (let n = 0; n < rows; n++) {
    sum += dGates[n * columns + this.thread.x];
  }
  return sum;`,
);

/** By branches, then by whether there is a bias. */
const table = [2, 3].map((branches) => [
  programs(branches, false),
  programs(branches, true),
]);

function programsFor(branches: number, bias: Tensor | undefined): Programs {
  const found = table[branches - 2]?.[bias ? 1 : 0];
  if (!found) throw new Error(`internal: gatedSum of ${branches} branches`);
  return found;
}

export const gatedSumKernels = (
  context: KernelContext,
): Kernels<'gatedSum' | 'gatedSumBackward'> => ({
  /** y[n, i] = sum over branches of sigmoid(gates[n, i, branch] + bias) o */
  gatedSum(inputs, { y }) {
    const [rows = 0, heads = 0, width = 0] = y.shape;
    const { forward } = programsFor(inputs.window ? 3 : 2, inputs.bias);
    const values = { ...inputs, heads, width };
    context.run(forward, values, y, [heads * width, rows]);
  },

  /**
   * dO = g dY
   * dGates = g (1 - g) (dY . o),  dBias = sum over n of dGates
   */
  gatedSumBackward(inputs, outputs) {
    const [rows = 0, heads = 0, width = 0] = inputs.dY.shape;
    const branches = inputs.window ? 3 : 2;
    const called = programsFor(branches, inputs.bias);
    const values = { ...inputs, heads, width };
    const { dCompressed, dSelected, dWindow, dGates, dBias } = outputs;
    [dCompressed, dSelected, dWindow].forEach((gradient, branch) => {
      if (!gradient) return;
      const threads = [heads * width, rows] as const;
      context.run(called.branch, { ...values, branch }, gradient, threads);
    });
    const columns = heads * branches;
    context.run(called.gates, values, dGates, [columns, rows]);
    const products = [
      [dCompressed, inputs.compressed, outputs.deltaCompressed],
      [dSelected, inputs.selected, outputs.deltaSelected],
      [dWindow, inputs.window, outputs.deltaWindow],
    ] as const;
    for (const [dO, o, delta] of products) {
      if (!dO || !o || !delta) continue;
      context.run(deltas, { o, dO, width }, delta, [rows * heads]);
    }
    if (!dBias) return;
    context.run(biasGradient, { dGates, rows, columns }, dBias, [columns]);
  },
});
