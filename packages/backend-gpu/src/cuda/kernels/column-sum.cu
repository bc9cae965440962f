#include "common.cuh"

/** Rows that a block sums; as in column-sum.ts. */
#define ROWS 256
/** Columns of a block, and rows of one column side by side. */
#define COLUMNS 32
#define WARPS 8

/** Of each stretch of 256 rows: y[part, c] = sum over its n of x[n, c] */
extern "C" __global__ void __launch_bounds__(COLUMNS *WARPS)
    columnSum(const f32 *x, T *y, i64 rows, int columns) {
  __shared__ float sums[WARPS][COLUMNS];
  int lane = threadIdx.x % COLUMNS;
  int warp = threadIdx.x / COLUMNS;
  int c = blockIdx.y * COLUMNS + lane;
  i64 first = (i64)blockIdx.x * ROWS;
  i64 end = first + ROWS < rows ? first + ROWS : rows;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (i64 n = first + warp; n < end; n += WARPS) sum += x[n * columns + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
  for (int w = 1; w < WARPS; w++) sum += sums[w][lane];
  y[(i64)blockIdx.x * columns + c] = narrow<T>(sum);
}
