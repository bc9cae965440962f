// y = value, for what a byte pattern cannot say.
#include "common.cuh"

extern "C" __global__ void fillBits(int *y, int bits, i64 count) {
  i64 i = globalIndex();
  if (i < count) y[i] = bits;
}
