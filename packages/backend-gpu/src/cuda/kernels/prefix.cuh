// Sums over the threads before.
#pragma once
#include "common.cuh"

/** Sums of all threads before, and of all; `counts` has a place a warp. */
__device__ inline int3 sumsBefore(int3 x, int3 &total, int3 *counts) {
  int lane = threadIdx.x % 32;
  int warp = threadIdx.x / 32;
  int3 sum = x;
  for (int reach = 1; reach < 32; reach *= 2) {
    int3 other = make_int3(__shfl_up_sync(0xffffffff, sum.x, reach),
                           __shfl_up_sync(0xffffffff, sum.y, reach),
                           __shfl_up_sync(0xffffffff, sum.z, reach));
    if (lane < reach) continue;
    sum = make_int3(sum.x + other.x, sum.y + other.y, sum.z + other.z);
  }
  __syncthreads();
  if (lane == 31) counts[warp] = sum;
  __syncthreads();
  int3 before = make_int3(sum.x - x.x, sum.y - x.y, sum.z - x.z);
  for (int w = 0; w < (int)blockDim.x / 32; w++) {
    int3 of = counts[w];
    total = make_int3(total.x + of.x, total.y + of.y, total.z + of.z);
    if (w < warp) {
      before = make_int3(before.x + of.x, before.y + of.y, before.z + of.z);
    }
  }
  return before;
}
