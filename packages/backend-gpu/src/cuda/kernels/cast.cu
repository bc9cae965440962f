// y = x, rounded to nearest even once
#include "pieces.cuh"

extern "C" __global__ void cast(const X *x, Y *y, i64 count) {
  i64 at = PIECE * globalIndex();
  if (at >= count) return;
  choose(at + PIECE <= count, [&](auto piece) {
    float value[PIECE];
    loadPiece(value, x, at, count, piece);
    storePiece(y, at, count, value, piece);
  });
}
