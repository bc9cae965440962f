#include "pieces.cuh"

/**
 * Sums of squares, one a block, so that every order is fixed; of a single block
 * the total grows by it.
 */
extern "C" __global__ void squaredNorm(const T *x, float *partial, i64 count) {
  float sum = 0;
  i64 step = (i64)gridDim.x * blockDim.x * PIECE;
  for (i64 at = PIECE * globalIndex(); at < count; at += step) {
    choose(at + PIECE <= count, [&](auto piece) {
      float value[PIECE];
      loadPiece(value, x, at, count, piece);
#pragma unroll
      for (int n = 0; n < PIECE; n++) sum += value[n] * value[n];
    });
  }
  sum = blockSum(sum);
  if (threadIdx.x > 0) return;
  partial[blockIdx.x] = gridDim.x == 1 ? *partial + sum : sum;
}

/** total += the sum of the parts */
extern "C" __global__ void squaredNormTotal(const float *partial, float *total,
                                            int count) {
  float sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = blockSum(sum);
  if (threadIdx.x == 0) *total += sum;
}
