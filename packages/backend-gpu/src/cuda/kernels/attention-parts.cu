// What the passes of attention need beside them.
#include "common.cuh"

/** Of each row its LSE (0 where it is -inf) and dO . o; a warp a row. */
extern "C" __global__ void rowStatistics(const T *o, const float *lse,
                                         const T *dO, float2 *statistics,
                                         i64 rows, int width) {
  i64 row = globalIndex() / 32;
  if (row >= rows) return;
  float delta = 0;
  // 16 bytes a lane where rows start at multiples of that.
  constexpr int STEP = 16 / sizeof(T);
  int lane = threadIdx.x % 32;
  if (width % STEP == 0) {
    for (int c = lane * STEP; c < width; c += 32 * STEP) {
      int4 x = *(const int4 *)(dO + row * width + c);
      int4 y = *(const int4 *)(o + row * width + c);
#pragma unroll
      for (int e = 0; e < STEP; e++) {
        delta += widen(((const T *)&x)[e]) * widen(((const T *)&y)[e]);
      }
    }
  } else {
    for (int c = lane; c < width; c += 32) {
      delta += widen(dO[row * width + c]) * widen(o[row * width + c]);
    }
  }
  delta = warpSum(delta);
  if (lane > 0) return;
  float all = lse[row];
  statistics[row] = make_float2(all == -INFINITE ? 0 : all, delta);
}

/** y[n, c] = sum over g of x[n, g, c] */
extern "C" __global__ void sumHeads(const f32 *x, T *y, i64 count, int heads,
                                    int width) {
  i64 i = globalIndex();
  if (i >= count) return;
  float sum = 0;
  for (int g = 0; g < heads; g++) {
    sum += x[(i / width * heads + g) * width + i % width];
  }
  y[i] = narrow<T>(sum);
}

/**
 * The inverse of the lists: bit `leader` of the words of (sequence, list,
 * block) says whether the leader chose the block. A thread a list; bits only
 * ever rise, so the order of the threads does not matter.
 */
extern "C" __global__ void invertLists(const int *indices,
                                       const Sequence *sequences,
                                       unsigned *chosenBy, int lists, int count,
                                       int sharing, int words, int blocks) {
  Sequence s = sequences[blockIdx.z];
  i64 i = globalIndex();
  int leader = i / lists;
  int list = i % lists;
  if (leader >= (s.queryCount + sharing - 1) / sharing) return;
  const int *own = indices + ((i64)(s.leaderStart + leader) * lists + list) * count;
  for (int n = 0; n < count; n++) {
    if (own[n] < 0 || own[n] >= blocks) continue;
    i64 word = (((i64)blockIdx.z * lists + list) * blocks + own[n]) * words;
    atomicOr(chosenBy + word + leader / 32, 1u << leader % 32);
  }
}
