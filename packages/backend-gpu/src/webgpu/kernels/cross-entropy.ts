import { flat, input, output, u32 } from '../launch';
import {
  elementwise,
  extent,
  type KernelContext,
  type Kernels,
  reductions,
} from './context';

const THREADS = 256;

export const crossEntropyKernels = (
  context: KernelContext,
): Kernels<'crossEntropy' | 'crossEntropyBackward'> => ({
  /** loss[n] = lse[n] - logits[n, targets[n]], 0 where the target is -1 */
  crossEntropy({ logits, targets }, { loss, lse }) {
    const rows = extent(logits, 0);
    context.run({
      kernel: 'crossEntropy',
      constants: {},
      bindings: {
        logits: input(logits),
        targets: input(targets),
        loss: output(loss),
        lse: output(lse),
      },
      uniforms: { rows: u32(rows), vocabulary: u32(extent(logits, 1)) },
      grid: flat(rows),
      source: () => ({
        threads: THREADS,
        declarations: reductions(THREADS),
        body: `let n = group.x + group.y * groups.x;
if (n >= u.rows) { return; }
let start = n * u.vocabulary;
var most = f32(logits[start]);
for (var v = tid; v < u.vocabulary; v += ${THREADS}u) {
  most = max(most, f32(logits[start + v]));
}
most = reduceMax(tid, most);
var sum = 0.0;
for (var v = tid; v < u.vocabulary; v += ${THREADS}u) {
  sum += exp(f32(logits[start + v]) - most);
}
let all = most + log(reduceSum(tid, sum));
if (tid == 0u) {
  let t = targets[n];
  lse[n] = all;
  loss[n] = select(all - f32(logits[start + min(u32(max(t, 0)), u.vocabulary - 1u)]), 0.0, t == -1);
}`,
      }),
    });
  },

  /** dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]) */
  crossEntropyBackward({ logits, targets, lse, dLoss }, { dLogits }) {
    context.run({
      kernel: 'crossEntropyBackward',
      constants: {},
      bindings: {
        logits: input(logits),
        targets: input(targets),
        lse: input(lse),
        dLoss: input(dLoss),
        dLogits: output(dLogits),
      },
      uniforms: {
        count: u32(logits.size),
        vocabulary: u32(extent(logits, 1)),
      },
      ...elementwise(
        logits.size,
        () => `let n = i / u.vocabulary;
let t = targets[n];
let p = exp(f32(logits[i]) - lse[n]) - select(0.0, 1.0, i32(i % u.vocabulary) == t);
dLogits[i] = t_dLogits(select(dLoss[n] * p, 0.0, t == -1));`,
      ),
    });
  },
});
