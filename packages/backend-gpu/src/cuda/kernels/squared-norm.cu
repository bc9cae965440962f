#include "common.cuh"

/** Sums of squares, one a block, so that every order is fixed. */
extern "C" __global__ void squaredNorm(const T *x, float *partial, i64 count) {
  float sum = 0;
  i64 step = (i64)gridDim.x * blockDim.x;
  for (i64 i = globalIndex(); i < count; i += step) {
    float value = widen(x[i]);
    sum += value * value;
  }
  sum = blockSum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/** total += the sum of the parts */
extern "C" __global__ void squaredNormTotal(const float *partial, float *total,
                                            int count) {
  float sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = blockSum(sum);
  if (threadIdx.x == 0) *total += sum;
}
