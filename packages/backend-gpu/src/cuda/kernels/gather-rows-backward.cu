#include "common.cuh"

#define THREADS 256

/**
 * dx[r] = sum of dy[i] over rows[i] = r, in the order of i. A block a row r
 * looks for its i, so that no two write one element.
 */
extern "C" __global__ void gatherRowsBackward(const T *dy, const int *rows,
                                              T *dx, int count, i64 width) {
  int r = blockIdx.x;
  // Columns past the threads take further rounds.
  for (i64 first = 0; first < width; first += THREADS) {
    i64 c = first + threadIdx.x;
    float sum = 0;
    for (int base = 0; base < count; base += THREADS) {
      __shared__ unsigned hits[THREADS / 32];
      int i = base + threadIdx.x;
      bool isHit = i < count && rows[i] == r;
      if (!__syncthreads_or(isHit)) continue;
      unsigned bits = __ballot_sync(0xffffffff, isHit);
      if (threadIdx.x % 32 == 0) hits[threadIdx.x / 32] = bits;
      __syncthreads();
      for (int word = 0; c < width && word < THREADS / 32; word++) {
        for (unsigned left = hits[word]; left; left &= left - 1) {
          int hit = base + 32 * word + __ffs(left) - 1;
          sum += widen(dy[hit * width + c]);
        }
      }
    }
    if (c < width) dx[r * width + c] = narrow<T>(sum);
    __syncthreads();
  }
}
