// y = x, rounded to nearest even once
#include "common.cuh"

extern "C" __global__ void cast(const X *x, Y *y, i64 count) {
  i64 i = globalIndex();
  if (i < count) y[i] = narrow<Y>(widen(x[i]));
}
