import { type BlockAttributes, blockCount, type Tensor } from '@asa/core';
import type { Memory } from '../memory';
import { program, quotient } from '../program';
import { extent, type KernelContext, type Kernels } from './context';

/** w[g] = softmax(logits[g]): m is `this.thread.x`, g is `this.thread.y`. */
const softmax = program(
  'slotWeights',
  { arrays: ['logits'], integers: ['length'] },
  `let most = logits[this.thread.y * length];
  for (let i = 0; i < length; i++) {
    most = Math.max(most, logits[this.thread.y * length + i]);
  }
  let sum = 0;
  for (let j = 0; j < length; j++) {
    sum += Math.exp(logits[this.thread.y * length + j] - most);
  }
  return Math.exp(
    logits[this.thread.y * length + this.thread.x] - most) / sum;`,
);

/** y[b, g, c]: b is `this.thread.y`, g D + c is `this.thread.x`. */
const forward = program(
  'compress',
  { arrays: ['x', 'w', 'starts'], integers: ['groups', 'width', 'length'] },
  `const start = starts[this.thread.y];
  if (start < 0) { return 0; }
  const group = ${quotient('this.thread.x', 'width')};
  let sum = 0;
  for (let m = 0; m < length; m++) {
    sum += w[Math.floor(group) * length + m]
      * x[(Math.floor(start) + m) * groups * width + this.thread.x];
  }
  return sum;`,
);

/**
 * The blocks that hold a key: the last one is `last`, the first one begins
 * less than l rows before the key. `at(b)` says what one gives.
 */
const overBlocks = (gives: string) => `
  const position = places[this.thread.y * 4];
  if (position < 0) { return 0; }
  const blockStart = places[this.thread.y * 4 + 1];
  const firstBlock = places[this.thread.y * 4 + 2];
  const count = places[this.thread.y * 4 + 3];
  const group = ${quotient('this.thread.x', 'width')};
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const b = blockStart + firstBlock + i;
    const m = position - (firstBlock + i) * stride;
    ${gives}
  }
  return sum;`;

/** dX[p, g, c]: p is `this.thread.y`, g D + c is `this.thread.x`. */
const inputGradient = program(
  'compressBackward',
  {
    arrays: ['dY', 'w', 'places'],
    integers: ['groups', 'width', 'length', 'stride'],
  },
  overBlocks(`sum += w[Math.floor(group) * length + Math.floor(m)]
      * dY[Math.floor(b) * groups * width + this.thread.x];`),
);

/** dW[g, m] = sum over b of dY[b, g] . x[b d + m, g] */
const weightGradient = program(
  'compressBackwardWeights',
  {
    arrays: ['x', 'dY', 'starts'],
    integers: ['groups', 'width', 'blocks'],
  },
  `let sum = 0;
  for (let b = 0; b < blocks; b++) {
    const start = starts[b];
    if (start >= 0) {
      let dot = 0;
      for (let c = 0; c < width; c++) {
        dot += dY[(b * groups + this.thread.y) * width + c]
          * x[((Math.floor(start) + this.thread.x) * groups + this.thread.y)
            * width + c];
      }
      sum += dot;
    }
  }
  return sum;`,
);

/** dLogits[g, m] = w[g, m] (dW[g, m] - sum over k of w[g, k] dW[g, k]) */
const logitGradient = program(
  'compressBackwardLogits',
  { arrays: ['w', 'dW'], integers: ['length'] },
  `let mean = 0;
  for (let k = 0; k < length; k++) {
    mean += w[this.thread.y * length + k] * dW[this.thread.y * length + k];
  }
  return w[this.thread.y * length + this.thread.x]
    * (dW[this.thread.y * length + this.thread.x] - mean);`,
);

/** y[b, g, m, c]: b is `this.thread.y`, the others are `this.thread.x`. */
const unfold = (bias: boolean) =>
  program(
    bias ? 'unfoldBlocksBiased' : 'unfoldBlocks',
    {
      arrays: ['x', 'starts', ...(bias ? ['bias'] : [])],
      integers: ['groups', 'width', 'length'],
    },
    `const start = starts[this.thread.y];
  if (start < 0) { return 0; }
  const slot = ${quotient('this.thread.x', 'width')};
  const group = ${quotient('slot', 'length')};
  const row = start + slot - group * length;
  const channel = this.thread.x - slot * width;
  return x[(Math.floor(row) * groups + Math.floor(group)) * width
    + Math.floor(channel)]${bias ? ' + bias[this.thread.x]' : ''};`,
  );
const unfoldPlain = unfold(false);
const unfoldBiased = unfold(true);

const unfoldGradient = program(
  'unfoldBlocksBackward',
  {
    arrays: ['dY', 'places'],
    integers: ['groups', 'width', 'length', 'stride'],
  },
  overBlocks(`const slot = (b * groups + group) * length + m;
    const channel = this.thread.x - group * width;
    sum += dY[Math.floor(slot) * width + Math.floor(channel)];`),
);

/** dBias[g, m, c] = sum over b of dY[b, g, m, c] */
const biasGradient = program(
  'unfoldBlocksBackwardBias',
  { arrays: ['dY', 'starts'], integers: ['blocks', 'columns'] },
  `let sum = 0;
  for (let b = 0; b < blocks; b++) {
    if (starts[b] >= 0) { sum += dY[b * columns + this.thread.x]; }
  }
  return sum;`,
);

export const compressKernels = (
  context: KernelContext,
): Kernels<
  'compress' | 'compressBackward' | 'unfoldBlocks' | 'unfoldBlocksBackward'
> => ({
  /** y[b, g] = sum over m of w[g, m] x[b d + m, g] */
  compress({ x, logits }, { y }, attributes) {
    const [rows = 0, groups = 0, width = 0] = y.shape;
    const { length } = attributes;
    const w = slotWeights(context, logits, groups, length);
    const starts = blockStarts(context, rows, attributes);
    const values = { x, w, starts, groups, width, length };
    context.run(forward, values, y, [groups * width, rows]);
    context.release(w);
    context.release(starts);
  },

  /**
   * dX[b d + m, g] += w[g, m] dY[b, g]
   * dW[g, m] = sum over b of dY[b, g] . x[b d + m, g]
   * dLogits[g, m] = w[g, m] (dW[g, m] - sum over k of w[g, k] dW[g, k])
   */
  compressBackward({ x, logits, dY }, { dX, dLogits }, attributes) {
    const [rows = 0, groups = 0, width = 0] = x.shape;
    const { length, stride } = attributes;
    const w = slotWeights(context, logits, groups, length);
    const places = keyPlaces(context, rows, attributes);
    const values = { dY, w, places, groups, width, length, stride };
    context.run(inputGradient, values, dX, [groups * width, rows]);
    if (dLogits) {
      const blocks = extent(dY, 0);
      const starts = blockStarts(context, blocks, attributes);
      const dW = context.scratch(groups * length);
      const threads = [length, groups] as const;
      const sums = { x, dY, starts, groups, width, blocks };
      context.run(weightGradient, sums, dW, threads);
      context.run(logitGradient, { w, dW, length }, dLogits, threads);
      context.release(starts);
      context.release(dW);
    }
    context.release(w);
    context.release(places);
  },

  /** y[b, g, m] = x[b d + m, g] + bias[g, m] */
  unfoldBlocks({ x, bias }, { y }, attributes) {
    const [, groups = 0, width = 0] = x.shape;
    const [rows = 0] = y.shape;
    const { length } = attributes;
    const starts = blockStarts(context, rows, attributes);
    const values = { x, starts, groups, width, length };
    const threads = [groups * length * width, rows] as const;
    if (bias) context.run(unfoldBiased, { ...values, bias }, y, threads);
    else context.run(unfoldPlain, values, y, threads);
    context.release(starts);
  },

  /**
   * dX[b d + m, g] += dY[b, g, m]
   * dBias[g, m] = sum over b of dY[b, g, m]
   */
  unfoldBlocksBackward({ dY }, { dX, dBias }, attributes) {
    const [rows = 0, groups = 0, width = 0] = dX.shape;
    const { length, stride } = attributes;
    const places = keyPlaces(context, rows, attributes);
    const values = { dY, places, groups, width, length, stride };
    context.run(unfoldGradient, values, dX, [groups * width, rows]);
    context.release(places);
    if (!dBias) return;
    const [blocks, columns] = [extent(dY, 0), dBias.size];
    const starts = blockStarts(context, blocks, attributes);
    const sums = { dY, starts, blocks, columns };
    context.run(biasGradient, sums, dBias, [columns]);
    context.release(starts);
  },
});

/** w[g] = softmax(logits[g]), or 1 / l without logits; `[G, l]` */
function slotWeights(
  context: KernelContext,
  logits: Tensor | undefined,
  groups: number,
  length: number,
): Memory {
  const count = groups * length;
  if (!logits) return context.table(new Float32Array(count).fill(1 / length));
  const w = context.scratch(count);
  context.run(softmax, { logits, length }, w, [length, groups]);
  return w;
}

/** The first row of each block, -1 where a block belongs to no sequence. */
function blockStarts(
  context: KernelContext,
  rows: number,
  attributes: BlockAttributes,
): Memory {
  const starts = new Float32Array(rows).fill(-1);
  for (const sequence of attributes.sequences.list) {
    const { keyStart, keyCount, blockStart } = sequence;
    const count = blockCount(keyCount, attributes);
    for (let b = 0; b < count; b++) {
      starts[blockStart + b] = keyStart + b * attributes.stride;
    }
  }
  return context.table(starts);
}

/**
 * Of each key: its position (-1 in no sequence), block row 0 of its sequence,
 * the first block that holds it, and how many do; `[Nk, 4]`.
 */
function keyPlaces(
  context: KernelContext,
  rows: number,
  attributes: BlockAttributes,
): Memory {
  const { sequences, length, stride } = attributes;
  const places = new Float32Array(rows * 4).fill(-1);
  for (const { keyStart, keyCount, blockStart } of sequences.list) {
    const count = blockCount(keyCount, attributes);
    for (let p = 0; p < keyCount; p++) {
      const first = Math.max(0, Math.floor((p - length) / stride) + 1);
      const last = Math.min(count - 1, Math.floor(p / stride));
      const held = Math.max(0, last - first + 1);
      places.set([p, blockStart, first, held], (keyStart + p) * 4);
    }
  }
  return context.table(places);
}
