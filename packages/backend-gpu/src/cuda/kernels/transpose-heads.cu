#include "common.cuh"

/** y[h, j, i] = x[h, i, j], `x [H, rows, columns]` */
extern "C" __global__ void transposeHeads(const T *x, T *y, int rows,
                                          int columns) {
  __shared__ T tile[32][33];
  i64 matrix = (i64)blockIdx.z * rows * columns;
  int i = blockIdx.y * 32 + threadIdx.y;
  int j = blockIdx.x * 32 + threadIdx.x;
  if (i < rows && j < columns) {
    tile[threadIdx.y][threadIdx.x] = x[matrix + (i64)i * columns + j];
  }
  __syncthreads();
  i = blockIdx.y * 32 + threadIdx.x;
  j = blockIdx.x * 32 + threadIdx.y;
  if (i < rows && j < columns) {
    y[matrix + (i64)j * rows + i] = tile[threadIdx.x][threadIdx.y];
  }
}
