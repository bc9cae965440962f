import { blockCount, type Tensor } from '@asa/core';
import { input, output, u32 } from '../launch';
import { blocksOf } from './compressed-attention';
import {
  extent,
  type KernelContext,
  type Kernels,
  reductions,
  sequenceOf,
} from './context';

const THREADS = 256;

export const compressKernels = (
  context: KernelContext,
): Kernels<
  'compress' | 'compressBackward' | 'unfoldBlocks' | 'unfoldBlocksBackward'
> => ({
  /** y[b, g] = sum over m of w[g, m] x[b d + m, g] */
  compress({ x, logits }, { y }, attributes) {
    const { sequences, length, stride } = attributes;
    const weights = slotWeights(context, logits);
    context.clear(y);
    context.run({
      kernel: 'compress',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: {
        x: input(x),
        weights: weights && input(weights),
        y: output(y),
        sequences: input(sequences.on(x.backend)),
      },
      uniforms: {
        groups: u32(extent(x, 1)),
        width: u32(extent(x, 2)),
      },
      grid: rowGrid(
        blockCount(sequences.maxKeys, attributes) * extent(x, 1) * extent(x, 2),
        sequences.count,
      ),
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}`,
        body: `let s = sequenceOf(group.z);
let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
let row = u.groups * u.width;
if (i >= blocksOf(s.keyCount) * row) { return; }
let b = i / row;
let g = i % row / u.width;
var sum = 0.0;
for (var m = 0u; m < LENGTH; m++) {
  let value = f32(x[(s.keyStart + b * STRIDE + m) * row + i % row]);
  sum += ${weights ? 'weights[g * LENGTH + m] * value' : 'value'};
}
y[s.blockStart * row + i] = t_y(sum${weights ? '' : ' / f32(LENGTH)'});`,
      }),
    });
    weights?.free();
  },

  /**
   * dX[b d + m, g] += w[g, m] dY[b, g]
   * dW[g, m] = sum over b of dY[b, g] . x[b d + m, g]
   * dLogits[g, m] = w[g, m] (dW[g, m] - sum over k of w[g, k] dW[g, k])
   */
  compressBackward({ x, logits, dY }, { dX, dLogits }, attributes) {
    const { sequences, length, stride } = attributes;
    const weights = slotWeights(context, logits);
    const [groups, width] = [extent(x, 1), extent(x, 2)];
    context.clear(dX);
    context.run({
      kernel: 'compressBackward',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: {
        dY: input(dY),
        weights: weights && input(weights),
        dX: output(dX),
        sequences: input(sequences.on(x.backend)),
      },
      uniforms: { groups: u32(groups), width: u32(width) },
      grid: rowGrid(sequences.maxKeys * groups * width, sequences.count),
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}`,
        body: `${tokenBlocks}
var sum = 0.0;
for (var b = firstBlock; b < endBlock; b++) {
  let value = f32(dY[(s.blockStart + b) * row + i % row]);
  sum += ${weights ? 'weights[i % row / u.width * LENGTH + j - b * STRIDE] * value' : 'value'};
}
dX[s.keyStart * row + i] = t_dX(sum${weights ? '' : ' / f32(LENGTH)'});`,
      }),
    });
    if (!weights || !dLogits) return;
    const dW = context.scratch(groups * length, 'f32');
    context.run({
      kernel: 'compressSlots',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: {
        x: input(x),
        dY: input(dY),
        dW: output(dW),
        sequences: input(sequences.on(x.backend)),
      },
      uniforms: {
        groups: u32(groups),
        width: u32(width),
        count: u32(sequences.count),
      },
      grid: [length, groups],
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}\n${reductions(THREADS)}`,
        body: `let m = group.x;
let g = group.y;
var sum = 0.0;
for (var n = 0u; n < u.count; n++) {
  let s = sequenceOf(n);
  for (var i = tid; i < blocksOf(s.keyCount) * u.width; i += ${THREADS}u) {
    let b = i / u.width;
    let c = i % u.width;
    let token = s.keyStart + b * STRIDE + m;
    sum += f32(dY[((s.blockStart + b) * u.groups + g) * u.width + c])
      * f32(x[(token * u.groups + g) * u.width + c]);
  }
}
let all = reduceSum(tid, sum);
if (tid == 0u) { dW[g * LENGTH + m] = all; }`,
      }),
    });
    context.run({
      kernel: 'compressLogits',
      constants: {},
      bindings: {
        weights: input(weights),
        dW: input(dW),
        dLogits: output(dLogits),
      },
      uniforms: { length: u32(length), count: u32(groups * length) },
      grid: [Math.ceil((groups * length) / THREADS)],
      source: () => ({
        threads: THREADS,
        body: `let i = group.x * ${THREADS}u + tid;
if (i >= u.count) { return; }
let start = i / u.length * u.length;
var mean = 0.0;
for (var m = start; m < start + u.length; m++) { mean += weights[m] * dW[m]; }
dLogits[i] = t_dLogits(weights[i] * (dW[i] - mean));`,
      }),
    });
    dW.free();
    weights.free();
  },

  /** y[b, g, m] = x[b d + m, g] + bias[g, m] */
  unfoldBlocks({ x, bias }, { y }, attributes) {
    const { sequences, length, stride } = attributes;
    const [groups, width] = [extent(x, 1), extent(x, 2)];
    const blocks = blockCount(sequences.maxKeys, attributes);
    context.clear(y);
    context.run({
      kernel: 'unfoldBlocks',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: {
        x: input(x),
        bias: bias && input(bias),
        y: output(y),
        sequences: input(sequences.on(x.backend)),
      },
      uniforms: { groups: u32(groups), width: u32(width) },
      grid: rowGrid(blocks * groups * length * width, sequences.count),
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}`,
        body: `let s = sequenceOf(group.z);
let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
let row = u.groups * LENGTH * u.width;
if (i >= blocksOf(s.keyCount) * row) { return; }
let c = i % u.width;
let m = i / u.width % LENGTH;
let g = i / (u.width * LENGTH) % u.groups;
let token = s.keyStart + i / row * STRIDE + m;
let value = f32(x[(token * u.groups + g) * u.width + c]);
y[s.blockStart * row + i] = t_y(value${bias ? ' + f32(bias[i % row])' : ''});`,
      }),
    });
  },

  /**
   * dX[b d + m, g] += dY[b, g, m]
   * dBias[g, m] = sum over b of dY[b, g, m]
   */
  unfoldBlocksBackward({ dY }, { dX, dBias }, attributes) {
    const { sequences, length, stride } = attributes;
    const [groups, width] = [extent(dX, 1), extent(dX, 2)];
    const table = input(sequences.on(dY.backend));
    context.clear(dX);
    context.run({
      kernel: 'unfoldBlocksBackward',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: { dY: input(dY), dX: output(dX), sequences: table },
      uniforms: { groups: u32(groups), width: u32(width) },
      grid: rowGrid(sequences.maxKeys * groups * width, sequences.count),
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}`,
        body: `${tokenBlocks}
let g = i % row / u.width;
var sum = 0.0;
for (var b = firstBlock; b < endBlock; b++) {
  let m = j - b * STRIDE;
  sum += f32(dY[(((s.blockStart + b) * u.groups + g) * LENGTH + m) * u.width + i % u.width]);
}
dX[s.keyStart * row + i] = t_dX(sum);`,
      }),
    });
    if (!dBias) return;
    context.run({
      kernel: 'unfoldBias',
      constants: { LENGTH: length, STRIDE: stride },
      bindings: { dY: input(dY), dBias: output(dBias), sequences: table },
      uniforms: { row: u32(dBias.size), count: u32(sequences.count) },
      grid: rowGrid(dBias.size, 1),
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}\n${blocksOf}`,
        body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i >= u.row) { return; }
var sum = 0.0;
for (var n = 0u; n < u.count; n++) {
  let s = sequenceOf(n);
  for (var b = 0u; b < blocksOf(s.keyCount); b++) {
    sum += f32(dY[(s.blockStart + b) * u.row + i]);
  }
}
dBias[i] = t_dBias(sum);`,
      }),
    });
  },
});

/** One thread an element of each sequence's rows. */
function rowGrid(elements: number, sequences: number) {
  const count = Math.ceil(elements / THREADS);
  const y = Math.ceil(count / 65_535);
  return [y === 0 ? 0 : Math.ceil(count / y), y, sequences] as const;
}

/** Element i of a sequence's tokens, token j, and the blocks that hold it. */
const tokenBlocks = `let s = sequenceOf(group.z);
let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
let row = u.groups * u.width;
if (i >= s.keyCount * row) { return; }
let j = i / row;
let endBlock = min(j / STRIDE + 1u, blocksOf(s.keyCount));
let firstBlock = select(0u, (j - LENGTH) / STRIDE + 1u, j >= LENGTH);`;

/** w[g] = softmax(logits[g]), f32 `[G, l]`; none without logits */
function slotWeights(
  context: KernelContext,
  logits: Tensor | undefined,
): Tensor | undefined {
  if (!logits) return undefined;
  const weights = context.scratch(logits.size, 'f32');
  context.run({
    kernel: 'slotWeights',
    constants: {},
    bindings: { logits: input(logits), weights: output(weights) },
    uniforms: { length: u32(extent(logits, 1)), count: u32(logits.size) },
    grid: [Math.ceil(logits.size / THREADS)],
    source: () => ({
      threads: THREADS,
      body: `let i = group.x * ${THREADS}u + tid;
if (i >= u.count) { return; }
let start = i / u.length * u.length;
var most = f32(logits[start]);
for (var m = start; m < start + u.length; m++) { most = max(most, f32(logits[m])); }
var sum = 0.0;
for (var m = start; m < start + u.length; m++) { sum += exp(f32(logits[m]) - most); }
weights[i] = exp(f32(logits[i]) - most) / sum;`,
    }),
  });
  return weights;
}
