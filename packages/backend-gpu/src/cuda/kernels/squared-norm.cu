#include "pieces.cuh"

#define THREADS 256
/** Elements of a block of threads; as in squared-norm.ts. */
#define ELEMENTS (16 * PIECE * THREADS)

struct Part {
  const T *x;
  i64 count;
  // Its first block of threads.
  i64 start;
};
struct Parts {
  Part list[MOST];
};

/** Sums of squares, one a block, so that every order is fixed. */
extern "C" __global__ void __launch_bounds__(THREADS)
    squaredNorm(Parts parts, float *partial, i64 first, int count) {
  Part part = parts.list[partOf(parts, count)];
  i64 start = ((i64)blockIdx.x - part.start) * ELEMENTS;
  float sum = 0;
#pragma unroll 4
  for (int n = 0; n < ELEMENTS; n += PIECE * THREADS) {
    i64 at = start + n + PIECE * threadIdx.x;
    if (at >= part.count) break;
    choose(at + PIECE <= part.count, [&](auto piece) {
      float value[PIECE];
      loadPiece(value, part.x, at, part.count, piece);
#pragma unroll
      for (int e = 0; e < PIECE; e++) sum += value[e] * value[e];
    });
  }
  sum = blockSum(sum);
  if (threadIdx.x == 0) partial[first + blockIdx.x] = sum;
}

/** total += the sum of the parts */
extern "C" __global__ void squaredNormTotal(const float *partial, float *total,
                                            i64 count) {
  float sum = 0;
  for (i64 i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = blockSum(sum);
  if (threadIdx.x == 0) *total += sum;
}
