// Rows of a table: T is the type of as many bits as an element has, or 128 where
// rows are whole pieces of 16 bytes.
#include "common.cuh"

/** y[i] = x[rows[i]] */
extern "C" __global__ void gatherRows(const T *x, const int *rows, T *y,
                                      i64 count, i64 width) {
  i64 i = globalIndex();
  if (i < count) y[i] = x[rows[i / width] * width + i % width];
}

/** target[rows[i]] = x[i] */
extern "C" __global__ void scatterRows(const T *x, const int *rows, T *target,
                                       i64 count, i64 width) {
  i64 i = globalIndex();
  if (i < count) target[rows[i / width] * width + i % width] = x[i];
}
