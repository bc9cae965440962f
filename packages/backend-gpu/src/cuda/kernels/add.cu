// y = a + b
#include "common.cuh"

extern "C" __global__ void add(const T *a, const T *b, T *y, i64 count) {
  i64 i = globalIndex();
  if (i < count) y[i] = narrow<T>(widen(a[i]) + widen(b[i]));
}
