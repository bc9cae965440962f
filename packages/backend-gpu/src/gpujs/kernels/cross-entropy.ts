import { program } from '../program';
import { extent, type KernelContext, type Kernels } from './context';

/** max + log(sum of exp(x - max)), one a row */
export const logSumExp = program(
  'logSumExp',
  { arrays: ['x'], integers: ['width', 'count'] },
  `let most = x[this.thread.x * width];
  for (let i = 0; i < count; i++) {
    most = Math.max(most, x[this.thread.x * width + i]);
  }
  let sum = 0;
  for (let j = 0; j < count; j++) {
    sum += Math.exp(x[this.thread.x * width + j] - most);
  }
  return most + Math.log(sum);`,
);

const loss = program(
  'crossEntropy',
  { arrays: ['logits', 'targets', 'lse'], integers: ['width'] },
  `const target = targets[this.thread.x];
  if (target < 0) { return 0; }
  return lse[this.thread.x]
    - logits[this.thread.x * width + Math.floor(target)];`,
);

const backward = program(
  'crossEntropyBackward',
  {
    arrays: ['logits', 'targets', 'lse', 'dLoss'],
    integers: ['width'],
  },
  `const target = targets[this.thread.y];
  if (target < 0) { return 0; }
  let p = Math.exp(
    logits[this.thread.y * width + this.thread.x] - lse[this.thread.y]);
  if (target === this.thread.x) { p = p - 1; }
  return dLoss[this.thread.y] * p;`,
);

export const crossEntropyKernels = (
  context: KernelContext,
): Kernels<'crossEntropy' | 'crossEntropyBackward'> => ({
  /** loss[n] = lse[n] - logits[n, targets[n]], 0 where the target is -1 */
  crossEntropy({ logits, targets }, outputs) {
    const width = extent(logits, 1);
    const threads = [extent(logits, 0)] as const;
    const { lse } = outputs;
    context.run(logSumExp, { x: logits, width, count: width }, lse, threads);
    context.run(loss, { logits, targets, lse, width }, outputs.loss, threads);
  },

  /** dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]) */
  crossEntropyBackward(inputs, { dLogits }) {
    const [rows = 0, width = 0] = inputs.logits.shape;
    context.run(backward, { ...inputs, width }, dLogits, [width, rows]);
  },
});
