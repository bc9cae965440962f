#include "pieces.cuh"

/** y = gate sigmoid(gate) up; without up, gate sigmoid(gate) */
extern "C" __global__ void swiglu(const T *gate, const T *up, T *y, i64 count) {
  letNextStart();
  i64 at = PIECE * globalIndex();
  if (at >= count) return;
  choose(at + PIECE <= count, [&](auto piece) {
    float x[PIECE], factor[PIECE];
    loadPiece(x, gate, at, count, piece);
    if (up) loadPiece(factor, up, at, count, piece);
#pragma unroll
    for (int n = 0; n < PIECE; n++) {
      x[n] *= sigmoid(x[n]) * (up ? factor[n] : 1);
    }
    storePiece(y, at, count, x, piece);
  });
}

/** dGate = dy up s (1 + gate (1 - s)), dUp = dy gate s, s = sigmoid(gate) */
extern "C" __global__ void swigluBackward(const T *gate, const T *up,
                                          const T *dy, T *dGate, T *dUp,
                                          i64 count) {
  i64 at = PIECE * globalIndex();
  if (at >= count) return;
  choose(at + PIECE <= count, [&](auto piece) {
    float x[PIECE], factor[PIECE], d[PIECE];
    loadPiece(x, gate, at, count, piece);
    loadPiece(d, dy, at, count, piece);
    if (up) loadPiece(factor, up, at, count, piece);
#pragma unroll
    for (int n = 0; n < PIECE; n++) {
      float s = sigmoid(x[n]);
      float slope = d[n] * s;
      d[n] = slope * (up ? factor[n] : 1) * (1 + x[n] * (1 - s));
      x[n] *= slope;
    }
    storePiece(dGate, at, count, d, piece);
    if (dUp) storePiece(dUp, at, count, x, piece);
  });
}
