// The online softmax of rows whose scores lie in accumulators, in units of a
// factor 2: 2^(scale log2(e) q . k).
#pragma once
#include "flash.cuh"

/**
 * A row's reference lags behind its maximum by a factor 2^LAG at most: its
 * weights stay far from the end of f16, and its sums are seldom corrected.
 */
#define LAG 8

/**
 * factor = what a row's sums are multiplied by: 1 / its total, where warps
 * shared out its keys relative to the largest of their references. Also its LSE.
 */
__device__ inline void closeRows(float (&factor)[ROW_TILES][2],
                                 const float (&most)[ROW_TILES][2],
                                 const float (&total)[ROW_TILES][2],
                                 const RowTable<ROWS> &rows,
                                 const Split &split, float *lse) {
  __shared__ float2 known[KEY_WARPS][ROWS];
  int warp = threadIdx.x / 32;
  int part = warp / ROW_WARPS;
  int firstRow = warp % ROW_WARPS * 16 * ROW_TILES + laneRow();
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = firstRow + 16 * m + 8 * half;
      float2 mine = make_float2(most[m][half], total[m][half]);
      if (laneColumn() == 0) known[part][row] = mine;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = firstRow + 16 * m + 8 * half;
      float top = -INFINITE;
      for (int w = 0; w < KEY_WARPS; w++) top = fmaxf(top, known[w][row].x);
      float reference = top == -INFINITE ? 0 : top;
      float all = 0;
      for (int w = 0; w < KEY_WARPS; w++) {
        all += known[w][row].y * exp2Fast(known[w][row].x - reference);
      }
      factor[m][half] = all == 0 ? 0 : exp2Fast(most[m][half] - reference) / all;
      int index = rows.index[row];
      if (part > 0 || laneColumn() > 0 || index < 0) continue;
      lse[split.rowOf(index)] = all == 0 ? -INFINITE : top / LOG2_E + logf(all);
    }
  }
}

/** Of a warp's rows: their references, the sums of their weights and of values. */
struct Softmax {
  float most[ROW_TILES][2];
  float total[ROW_TILES][2];
  float sums[ROW_TILES][VALUES / 8][4];

  __device__ Softmax() {
    clear(sums);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        most[m][half] = -INFINITE;
        total[m][half] = 0;
      }
    }
  }

  /** Scores to weights, relative to references that may rise. */
  __device__ void weigh(float (&scores)[ROW_TILES][SPAN / 8][4], float scale) {
    float fade[ROW_TILES][2];
    bool fades = false;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = rowMost(scores[m], half) * scale;
        bool rises = top > most[m][half] + LAG;
        fades = fades || rises;
        fade[m][half] = rises ? exp2Fast(most[m][half] - top) : 1;
        if (rises) most[m][half] = top;
        // Where nothing was seen yet every weight is 2^-inf.
        float reference = most[m][half] == -INFINITE ? 0 : most[m][half];
        float sum = 0;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &p = scores[m][n][2 * half + e];
            p = exp2Fast(p * scale - reference);
            sum += p;
          }
        }
        total[m][half] = total[m][half] * fade[m][half] + sum;
      }
    }
    if (__any_sync(0xffffffff, fades)) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
        for (int n = 0; n < VALUES / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) sums[m][n][e] *= fade[m][e / 2];
        }
      }
    }
  }

  /** sums = o; the block's warps meet. */
  __device__ void close(const RowTable<ROWS> &rows, const Split &split,
                        float *lse) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float &all = total[m][half];
        all += __shfl_xor_sync(0xffffffff, all, 1);
        all += __shfl_xor_sync(0xffffffff, all, 2);
      }
    }
    float factor[ROW_TILES][2];
    closeRows(factor, most, total, rows, split, lse);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int n = 0; n < VALUES / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sums[m][n][e] *= factor[m][e / 2];
      }
    }
  }
};
