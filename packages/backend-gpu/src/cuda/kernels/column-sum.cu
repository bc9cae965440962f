#include "common.cuh"

/** Rows that one thread sums. */
#define ROWS 256

/** Of each stretch of 256 rows: y[part, c] = sum over its n of x[n, c] */
extern "C" __global__ void columnSum(const f32 *x, T *y, i64 rows, int columns) {
  int c = blockIdx.y * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  i64 first = (i64)blockIdx.x * ROWS;
  i64 end = first + ROWS < rows ? first + ROWS : rows;
  float sum = 0;
  for (i64 n = first; n < end; n++) sum += x[n * columns + c];
  y[(i64)blockIdx.x * columns + c] = narrow<T>(sum);
}
