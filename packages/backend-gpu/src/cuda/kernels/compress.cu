// Compression blocks: block b of a sequence is its rows [b d, b d + l). One
// axis of the grid runs over the elements of a sequence, z over sequences.
#include "common.cuh"

struct Blocks {
  const Sequence *sequences;
  int length, stride, groups, width;
};

/** w[g] = softmax(logits[g]), `[G, l]` */
extern "C" __global__ void slotWeights(const T *logits, f32 *weights, int length,
                                       int count) {
  int i = globalIndex();
  if (i >= count) return;
  const T *row = logits + i / length * length;
  float most = widen(row[0]);
  for (int m = 1; m < length; m++) most = fmaxf(most, widen(row[m]));
  float sum = 0;
  for (int m = 0; m < length; m++) sum += expf(widen(row[m]) - most);
  weights[i] = expf(widen(logits[i]) - most) / sum;
}

/** y[b, g] = sum over m of w[g, m] x[b d + m, g]; w = 1 / l where missing */
extern "C" __global__ void compress(Blocks u, const T *x, const f32 *weights,
                                    T *y) {
  Sequence s = u.sequences[blockIdx.z];
  i64 i = globalIndex();
  i64 row = (i64)u.groups * u.width;
  if (i >= blocksOf(s.keyCount, u.length, u.stride) * row) return;
  i64 b = i / row;
  int g = i % row / u.width;
  float sum = 0;
  for (int m = 0; m < u.length; m++) {
    float value = widen(x[(s.keyStart + b * u.stride + m) * row + i % row]);
    sum += weights ? weights[g * u.length + m] * value : value;
  }
  y[s.blockStart * row + i] = narrow<T>(weights ? sum : sum / u.length);
}

/** The blocks that hold token j: [first, end) */
__device__ int firstBlock(const Blocks &u, int j) {
  return j < u.length ? 0 : (j - u.length) / u.stride + 1;
}
__device__ int endBlock(const Blocks &u, int j, int keyCount) {
  return min(j / u.stride + 1, blocksOf(keyCount, u.length, u.stride));
}

/** dX[b d + m, g] += w[g, m] dY[b, g] */
extern "C" __global__ void compressBackward(Blocks u, const T *dY,
                                            const f32 *weights, T *dX) {
  Sequence s = u.sequences[blockIdx.z];
  i64 i = globalIndex();
  i64 row = (i64)u.groups * u.width;
  if (i >= s.keyCount * row) return;
  int j = i / row;
  int g = i % row / u.width;
  float sum = 0;
  for (int b = firstBlock(u, j); b < endBlock(u, j, s.keyCount); b++) {
    float value = widen(dY[(s.blockStart + b) * row + i % row]);
    sum += weights ? weights[g * u.length + j - b * u.stride] * value : value;
  }
  dX[s.keyStart * row + i] = narrow<T>(weights ? sum : sum / u.length);
}

/** dW[g, m] = sum over b of dY[b, g] . x[b d + m, g]; a block a slot */
extern "C" __global__ void compressSlots(Blocks u, const T *x, const T *dY,
                                         f32 *dW, int count) {
  int m = blockIdx.x;
  int g = blockIdx.y;
  float sum = 0;
  for (int n = 0; n < count; n++) {
    Sequence s = u.sequences[n];
    i64 elements = (i64)blocksOf(s.keyCount, u.length, u.stride) * u.width;
    for (i64 i = threadIdx.x; i < elements; i += blockDim.x) {
      i64 b = i / u.width;
      i64 token = s.keyStart + b * u.stride + m;
      sum += widen(dY[((s.blockStart + b) * u.groups + g) * u.width + i % u.width]) *
             widen(x[(token * u.groups + g) * u.width + i % u.width]);
    }
  }
  sum = blockSum(sum);
  if (threadIdx.x == 0) dW[g * u.length + m] = sum;
}

/** dLogits[g, m] = w[g, m] (dW[g, m] - sum over k of w[g, k] dW[g, k]) */
extern "C" __global__ void compressLogits(const f32 *weights, const f32 *dW,
                                          T *dLogits, int length, int count) {
  int i = globalIndex();
  if (i >= count) return;
  int start = i / length * length;
  float mean = 0;
  for (int m = start; m < start + length; m++) mean += weights[m] * dW[m];
  dLogits[i] = narrow<T>(weights[i] * (dW[i] - mean));
}

/** y[b, g, m] = x[b d + m, g] + bias[g, m] */
extern "C" __global__ void unfoldBlocks(Blocks u, const T *x, const T *bias,
                                        T *y) {
  Sequence s = u.sequences[blockIdx.z];
  i64 i = globalIndex();
  i64 row = (i64)u.groups * u.length * u.width;
  if (i >= blocksOf(s.keyCount, u.length, u.stride) * row) return;
  int c = i % u.width;
  int m = i / u.width % u.length;
  int g = i / ((i64)u.width * u.length) % u.groups;
  i64 token = s.keyStart + i / row * u.stride + m;
  float value = widen(x[(token * u.groups + g) * u.width + c]);
  if (bias) value += widen(bias[i % row]);
  y[s.blockStart * row + i] = narrow<T>(value);
}

/** dX[b d + m, g] += dY[b, g, m] */
extern "C" __global__ void unfoldBlocksBackward(Blocks u, const T *dY, T *dX) {
  Sequence s = u.sequences[blockIdx.z];
  i64 i = globalIndex();
  i64 row = (i64)u.groups * u.width;
  if (i >= s.keyCount * row) return;
  int j = i / row;
  int g = i % row / u.width;
  int c = i % u.width;
  float sum = 0;
  for (int b = firstBlock(u, j); b < endBlock(u, j, s.keyCount); b++) {
    i64 slot = ((i64)(s.blockStart + b) * u.groups + g) * u.length + j - b * u.stride;
    sum += widen(dY[slot * u.width + c]);
  }
  dX[s.keyStart * row + i] = narrow<T>(sum);
}

/** dBias[g, m] = sum over b of dY[b, g, m] */
extern "C" __global__ void unfoldBias(Blocks u, const T *dY, T *dBias, i64 row,
                                      int count) {
  i64 i = globalIndex();
  if (i >= row) return;
  float sum = 0;
  for (int n = 0; n < count; n++) {
    Sequence s = u.sequences[n];
    for (int b = 0; b < blocksOf(s.keyCount, u.length, u.stride); b++) {
      sum += widen(dY[(s.blockStart + b) * row + i]);
    }
  }
  dBias[i] = narrow<T>(sum);
}
