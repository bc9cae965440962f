import { program } from '../program';
import type { KernelContext, Kernels } from './context';
import { logSumExp } from './cross-entropy';

/** 1 where every logit is a number below infinity. */
const fit = program(
  'sampleFit',
  { arrays: ['logits'], integers: ['stride', 'width'] },
  `let good = 0;
  for (let i = 0; i < width; i++) {
    if (logits[this.thread.x * stride + i] <= 3.4028234663852886e38) {
      good += 1;
    }
  }
  if (good === width) { return 1; }
  return 0;`,
);

/** Tokens that come before one: larger, or equal with a lower id. */
const rank = program(
  'sampleRank',
  { arrays: ['logits'], integers: ['stride', 'width'] },
  `const own = logits[this.thread.y * stride + this.thread.x];
  let before = 0;
  for (let i = 0; i < width; i++) {
    const other = logits[this.thread.y * stride + i];
    if (other > own) { before += 1; }
    if (other === own && i < this.thread.x) { before += 1; }
  }
  return before;`,
);

/** The token of rank 0, one a row. */
const best = program(
  'sampleBest',
  { arrays: ['ranks'], integers: ['width'] },
  `let found = 0;
  for (let i = 0; i < width; i++) {
    if (ranks[this.thread.x * width + i] === 0) { found = i; }
  }
  return found;`,
);

/** exp((x - best) / temperature) of the first k, 0 of the others. */
const weigh = program(
  'sampleWeights',
  {
    arrays: ['logits', 'ranks', 'bests', 'settings'],
    integers: ['stride', 'width'],
  },
  `const temperature = settings[this.thread.y * 5];
  const x = logits[this.thread.y * stride + this.thread.x];
  const most = logits[this.thread.y * stride
    + Math.floor(bests[this.thread.y])];
  if (ranks[this.thread.y * width + this.thread.x]
    >= settings[this.thread.y * 5 + 1]) { return 0; }
  if (temperature === 0 || x < -3.4028234663852886e38) { return 0; }
  return Math.exp((x - most) / temperature);`,
);

const totals = program(
  'sampleTotals',
  { arrays: ['weights'], integers: ['width'] },
  `let sum = 0;
  for (let i = 0; i < width; i++) {
    sum += weights[this.thread.x * width + i];
  }
  return sum;`,
);

/** What min-p and top-p leave of the weights. */
const keep = program(
  'sampleKept',
  {
    arrays: ['weights', 'ranks', 'total', 'settings'],
    integers: ['width'],
  },
  `const own = weights[this.thread.y * width + this.thread.x];
  const topP = settings[this.thread.y * 5 + 2];
  if (own < settings[this.thread.y * 5 + 3]) { return 0; }
  if (topP >= 1) { return own; }
  const place = ranks[this.thread.y * width + this.thread.x];
  let before = 0;
  for (let i = 0; i < width; i++) {
    if (ranks[this.thread.y * width + i] < place) {
      before += weights[this.thread.y * width + i];
    }
  }
  // The token that reaches the share is the last one.
  if (place > 0 && before >= topP * total[this.thread.y]) { return 0; }
  return own;`,
);

/** The token in whose part the random number falls; one a row. */
const draw = program(
  'sample',
  {
    arrays: ['kept', 'bests', 'fits', 'settings'],
    integers: ['width'],
  },
  `if (fits[this.thread.x] < 1) { return -1; }
  if (settings[this.thread.x * 5] === 0) { return bests[this.thread.x]; }
  let sum = 0;
  for (let i = 0; i < width; i++) { sum += kept[this.thread.x * width + i]; }
  let left = settings[this.thread.x * 5 + 4] * sum;
  let found = -1;
  let last = 0;
  for (let j = 0; j < width; j++) {
    const weight = kept[this.thread.x * width + j];
    if (weight > 0) {
      last = j;
      left -= weight;
      if (left < 0 && found < 0) { found = j; }
    }
  }
  if (found < 0) { return last; }
  return found;`,
);

/** The token, and the logarithm of its probability. */
const describe = program(
  'sampleChosen',
  { arrays: ['logits', 'tokens', 'lse'], integers: ['stride'] },
  `const token = tokens[this.thread.y];
  if (this.thread.x === 0) { return token; }
  if (token < 0) { return 0; }
  return logits[this.thread.y * stride + Math.floor(token)]
    - lse[this.thread.y];`,
);

export const sampleKernels = (context: KernelContext): Kernels<'sample'> => ({
  /** the token in whose share of the kept probabilities the number falls */
  sample({ logits, settings }, { tokens, chosen }, { width }) {
    const [rows = 0, stride = 0] = logits.shape;
    const [row, each] = [[rows], [width, rows]] as const;
    const scratch = (elements: number) => context.scratch(elements);
    const [fits, bests, total, lse] = [
      scratch(rows),
      scratch(rows),
      scratch(rows),
      scratch(rows),
    ];
    const [ranks, weights, kept] = [
      scratch(rows * width),
      scratch(rows * width),
      scratch(rows * width),
    ];
    const given = { logits, settings, stride, width };
    context.run(fit, given, fits, row);
    context.run(rank, given, ranks, each);
    context.run(best, { ranks, width }, bests, row);
    context.run(weigh, { ...given, ranks, bests }, weights, each);
    context.run(totals, { weights, width }, total, row);
    context.run(keep, { ...given, weights, ranks, total }, kept, each);
    context.run(draw, { ...given, kept, bests, fits }, tokens, row);
    const sums = { x: logits, width: stride, count: width };
    context.run(logSumExp, sums, lse, row);
    context.run(describe, { ...given, tokens, lse }, chosen, [2, rows]);
    const used = [fits, bests, total, lse, ranks, weights, kept];
    for (const memory of used) context.release(memory);
  },
});
