// Rows of importance: of the leaders of some sequences, or of all.
#pragma once
#include "common.cuh"

struct Ranks {
  int groups;
  // Selection blocks of a row.
  int places;
  // Leaders of each sequence that there are rows for.
  int first, count;
  // Whether those rows are all that there are, or all lists' rows are.
  int isPart;

  __device__ i64 rowOf(const Sequence &s, int leader,
                       int sequence = blockIdx.z) const {
    return isPart ? (i64)sequence * count + leader - first
                  : s.leaderStart + leader;
  }
};

/**
 * How often p[(l' / d) j + offset] is in P[j], the sum over m < l' / d, k < l / d of
 * p[(l' / d) j + m - k].
 */
__device__ inline int pairsAt(int offset, int m, int k) {
  return min(m - 1, offset + k - 1) - max(0, offset) + 1;
}

/** Of 2 HALF sums two lanes, REACH apart, keep HALF each, with both lanes' terms. */
template <int HALF, int REACH = 2 * HALF>
__device__ inline void halve(float (&x)[16]) {
  bool upper = threadIdx.x & REACH;
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    float given = upper ? x[i] : x[i + HALF];
    float kept = upper ? x[i + HALF] : x[i];
    x[i] = kept + __shfl_xor_sync(0xffffffff, given, REACH);
  }
}
