// A part is what a list finds in a block of keys: o in 16 bits and the LSE of
// its 16 rows. Of the kernels that make parts, and of join-lists.cu.
#pragma once
#include "chunks.cuh"
#include "flash.cuh"

static_assert(SHARING * UNIT <= 16, "a list a row tile");

/** 16-byte words of a part: 16 columns as in accumulators, then the next ones. */
constexpr int PART = VALUES / 16 * 32;

/** Parts and their LSE, in units of a factor 2. */
struct Parts {
  uint4 *o;
  float *lse;
};

/** Scores of keys that are not seen; a list's first row sees `0 .. last`. */
template <int COLUMNS>
__device__ inline void hideBehind(float (&scores)[COLUMNS][4], int last) {
  if (last >= 8 * COLUMNS - 1) return;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int own = last + (laneRow() + 8 * half) / UNIT;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float &x = scores[n][2 * half + e];
        if (8 * n + laneColumn() + e > own) x = -INFINITE;
      }
    }
  }
}

/**
 * Scores of all keys of COUNT blocks to weights, of which `factor` makes shares;
 * with the LSE of a lane's rows. They become operands of the next product 16
 * columns at a time, as three blocks leave few registers.
 */
template <int COUNT, int COLUMNS>
__device__ inline void weighBlocks(unsigned (*weights)[COLUMNS / 2][4],
                                   float (*scores)[COLUMNS][4], float scale,
                                   float (&factor)[2], float (&lse)[2]) {
  float reference[2];
  float total[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = -INFINITE;
#pragma unroll
    for (int b = 0; b < COUNT; b++) {
      top = fmaxf(top, rowMost(scores[b], half));
    }
    reference[half] = top == -INFINITE ? 0 : top * scale;
  }
#pragma unroll
  for (int b = 0; b < COUNT; b++) {
#pragma unroll
    for (int k = 0; k < COLUMNS / 2; k++) {
#pragma unroll
      for (int e = 0; e < 8; e++) {
        float &x = scores[b][2 * k + e / 4][e % 4];
        x = exp2Fast(x * scale - reference[e / 2 % 2]);
        total[e / 2 % 2] += x;
      }
      operandOf(weights[b][k], scores[b], k);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float all = total[half];
    all += __shfl_xor_sync(0xffffffff, all, 1);
    all += __shfl_xor_sync(0xffffffff, all, 2);
    factor[half] = all == 0 ? 0 : __fdividef(1, all);
    lse[half] = all == 0 ? -INFINITE : reference[half] + __log2f(all);
  }
}

/** 16 columns of a part from sums of weighted values. */
__device__ inline uint4 partOf(const float (&low)[4], const float (&high)[4],
                               const float (&factor)[2]) {
  float x = factor[0];
  float y = factor[1];
  return make_uint4(pair(low[0] * x, low[1] * x, T()),
                    pair(low[2] * y, low[3] * y, T()),
                    pair(high[0] * x, high[1] * x, T()),
                    pair(high[2] * y, high[3] * y, T()));
}
