#include "pieces.cuh"

#ifndef BRANCHES
#define BRANCHES 2
#endif
/** Whether a row is whole pieces. */
#ifndef WHOLE
#define WHOLE 0
#endif
#if WHOLE
typedef Whole RowPiece;
#else
typedef Ragged RowPiece;
#endif

/** What both passes read; `bias` may be missing. */
struct Branches {
  const T *gates, *bias;
  const T *o[3];
  int heads, width;
};

/** g = sigmoid(gates + bias) of a row's branches, whose loads wait together. */
__device__ inline void loadGates(float (&g)[BRANCHES], const Branches &u,
                                 i64 row) {
  int head = (unsigned)row % u.heads;
  float bias[BRANCHES] = {};
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
    g[branch] = widen(u.gates[row * BRANCHES + branch]);
    if (u.bias) bias[branch] = widen(u.bias[head * BRANCHES + branch]);
  }
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
    g[branch] = sigmoid(g[branch] + bias[branch]);
  }
}

/** y[n, i] = sum over branches of g o; a thread a piece of a row */
extern "C" __global__ void gatedSum(Branches u, T *y, i64 rows) {
  letNextStart();
  unsigned pieces = (u.width + PIECE - 1) / PIECE;
  i64 row = (unsigned)globalIndex() / pieces;
  if (row >= rows) return;
  i64 c = (unsigned)globalIndex() % pieces * PIECE;
  RowPiece piece;
  float x[BRANCHES][PIECE], g[BRANCHES], sum[PIECE];
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
    loadPiece(x[branch], u.o[branch] + row * u.width, c, u.width, piece);
  }
  loadGates(g, u, row);
  clear(sum);
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
#pragma unroll
    for (int n = 0; n < PIECE; n++) sum[n] += g[branch] * x[branch][n];
  }
  storePiece(y + row * u.width, c, u.width, sum, piece);
}

struct Gradients {
  T *gates;
  T *o[3];
  f32 *delta[3];
};

/**
 * dO = g dY,  delta = dO . o of dO as it is stored, and in the order in which
 * `rowStatistics` adds: attention's gradients are the same with it, to the bit
 * dGates = g (1 - g) (dY . o); terms are the same unrounded, for dBias
 */
extern "C" __global__ void gatedSumBackward(Branches u, const T *dY,
                                            Gradients d, f32 *terms, i64 rows) {
  i64 row = globalIndex() / LANES;
  // Lanes without a row take part in the sums.
  bool isRow = row < rows;
  float g[BRANCHES] = {}, dots[BRANCHES] = {}, deltas[BRANCHES] = {};
  int width = isRow ? u.width : 0;
  RowPiece piece;
  for (int c = threadIdx.x % LANES * PIECE; c < width; c += LANES * PIECE) {
    float x[BRANCHES][PIECE], dy[PIECE];
    loadPiece(dy, dY + row * u.width, c, u.width, piece);
#pragma unroll
    for (int branch = 0; branch < BRANCHES; branch++) {
      loadPiece(x[branch], u.o[branch] + row * u.width, c, u.width, piece);
    }
    // Behind those, so that they wait together; once, but in wide rows.
    loadGates(g, u, row);
#pragma unroll
    for (int branch = 0; branch < BRANCHES; branch++) {
      float dO[PIECE];
#pragma unroll
      for (int n = 0; n < PIECE; n++) {
        dots[branch] += dy[n] * x[branch][n];
        dO[n] = g[branch] * dy[n];
      }
      storePiece(d.o[branch] + row * u.width, c, u.width, dO, piece);
      roundPiece(dO, T());
#pragma unroll
      for (int n = 0; n < PIECE; n++) deltas[branch] += dO[n] * x[branch][n];
    }
  }
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
    float dot = rowSum(dots[branch]);
    float delta = rowSum(deltas[branch]);
    if (!isRow || threadIdx.x % LANES > 0) continue;
    float gradient = g[branch] * (1 - g[branch]) * dot;
    d.gates[row * BRANCHES + branch] = narrow<T>(gradient);
    d.delta[branch][row] = delta;
    if (terms) terms[row * BRANCHES + branch] = gradient;
  }
}
