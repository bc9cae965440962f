import { blockCount, type Sequences, type Tensor } from '@asa/core';
import { floats, type Kernels } from './operands';

export const compressKernels: Kernels<
  'compress' | 'compressBackward' | 'unfoldBlocks' | 'unfoldBlocksBackward'
> = {
  /** y[b, g] = sum over m of w[g, m] x[b d + m, g] */
  compress({ x, logits }, outputs, attributes) {
    const [, groups = 0, width = 0] = x.shape;
    const { length } = attributes;
    const w = slotWeights(logits, groups, length);
    const values = floats(x);
    const y = new Float64Array(outputs.y.size);
    forEachSlot(attributes, (block, row, m) => {
      for (let g = 0; g < groups; g++) {
        const weight = w[g * length + m] as number;
        const from = (row * groups + g) * width;
        const to = (block * groups + g) * width;
        for (let c = 0; c < width; c++) {
          y[to + c] =
            (y[to + c] as number) + weight * (values[from + c] as number);
        }
      }
    });
    floats(outputs.y).set(y);
  },

  /**
   * dX[b d + m, g] += w[g, m] dY[b, g]
   * dW[g, m] = sum over b of dY[b, g] . x[b d + m, g]
   * dLogits[g, m] = w[g, m] (dW[g, m] - sum over k of w[g, k] dW[g, k])
   */
  compressBackward({ x, logits, dY }, outputs, attributes) {
    const [, groups = 0, width = 0] = x.shape;
    const { length } = attributes;
    const w = slotWeights(logits, groups, length);
    const values = floats(x);
    const gradient = floats(dY);
    const dX = new Float64Array(x.size);
    const dW = new Float64Array(groups * length);
    forEachSlot(attributes, (block, row, m) => {
      for (let g = 0; g < groups; g++) {
        const weight = w[g * length + m] as number;
        const to = (row * groups + g) * width;
        const from = (block * groups + g) * width;
        let dot = 0;
        for (let c = 0; c < width; c++) {
          const d = gradient[from + c] as number;
          dX[to + c] = (dX[to + c] as number) + weight * d;
          dot += d * (values[to + c] as number);
        }
        dW[g * length + m] = (dW[g * length + m] as number) + dot;
      }
    });
    floats(outputs.dX).set(dX);
    if (!outputs.dLogits) return;
    const dLogits = floats(outputs.dLogits);
    for (let start = 0; start < w.length; start += length) {
      let mean = 0;
      for (let m = start; m < start + length; m++) {
        mean += (w[m] as number) * (dW[m] as number);
      }
      for (let m = start; m < start + length; m++) {
        dLogits[m] = (w[m] as number) * ((dW[m] as number) - mean);
      }
    }
  },

  /** y[b, g, m] = x[b d + m, g] + bias[g, m] */
  unfoldBlocks(inputs, outputs, attributes) {
    const [, groups = 0, width = 0] = inputs.x.shape;
    const { length } = attributes;
    const x = floats(inputs.x);
    const bias = inputs.bias && floats(inputs.bias);
    const y = floats(outputs.y);
    y.fill(0);
    forEachSlot(attributes, (block, row, m) => {
      for (let g = 0; g < groups; g++) {
        const from = (row * groups + g) * width;
        const slot = (g * length + m) * width;
        const to = block * groups * length * width + slot;
        for (let c = 0; c < width; c++) {
          y[to + c] =
            (x[from + c] as number) + (bias ? (bias[slot + c] as number) : 0);
        }
      }
    });
  },

  /**
   * dX[b d + m, g] += dY[b, g, m]
   * dBias[g, m] = sum over b of dY[b, g, m]
   */
  unfoldBlocksBackward(inputs, outputs, attributes) {
    const [, groups = 0, width = 0] = outputs.dX.shape;
    const { length } = attributes;
    const dY = floats(inputs.dY);
    const dX = new Float64Array(outputs.dX.size);
    const dBias = new Float64Array(groups * length * width);
    forEachSlot(attributes, (block, row, m) => {
      for (let g = 0; g < groups; g++) {
        const to = (row * groups + g) * width;
        const slot = (g * length + m) * width;
        const from = block * dBias.length + slot;
        for (let c = 0; c < width; c++) {
          const d = dY[from + c] as number;
          dX[to + c] = (dX[to + c] as number) + d;
          dBias[slot + c] = (dBias[slot + c] as number) + d;
        }
      }
    });
    floats(outputs.dX).set(dX);
    if (outputs.dBias) floats(outputs.dBias).set(dBias);
  },
};

interface BlockAttributes {
  readonly sequences: Sequences;
  readonly length: number;
  readonly stride: number;
}

/** Every slot m of every whole block: the block's row and the token's row. */
function forEachSlot(
  { sequences, length, stride }: BlockAttributes,
  visit: (block: number, row: number, m: number) => void,
): void {
  for (const { keyStart, keyCount, blockStart } of sequences.list) {
    const blocks = blockCount(keyCount, { length, stride });
    for (let b = 0; b < blocks; b++) {
      for (let m = 0; m < length; m++) {
        visit(blockStart + b, keyStart + b * stride + m, m);
      }
    }
  }
}

/** w[g] = softmax(logits[g]), or 1 / l without logits; `[G, l]` */
function slotWeights(
  logits: Tensor | undefined,
  groups: number,
  length: number,
): Float64Array {
  const w = new Float64Array(groups * length).fill(1 / length);
  if (!logits) return w;
  const values = floats(logits);
  for (let g = 0; g < groups; g++) {
    const row = Float64Array.from(
      values.subarray(g * length, (g + 1) * length),
    );
    const max = row.reduce((a, b) => Math.max(a, b));
    const powers = row.map((logit) => Math.exp(logit - max));
    const sum = powers.reduce((a, b) => a + b);
    w.set(
      powers.map((power) => power / sum),
      g * length,
    );
  }
  return w;
}
