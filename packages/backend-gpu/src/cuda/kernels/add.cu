// y = a + b
#include "pieces.cuh"

extern "C" __global__ void add(const T *a, const T *b, T *y, i64 count) {
  i64 at = PIECE * globalIndex();
  if (at >= count) return;
  choose(at + PIECE <= count, [&](auto piece) {
    float sum[PIECE], other[PIECE];
    loadPiece(sum, a, at, count, piece);
    loadPiece(other, b, at, count, piece);
#pragma unroll
    for (int n = 0; n < PIECE; n++) sum[n] += other[n];
    storePiece(y, at, count, sum, piece);
  });
}
