#include "pieces.cuh"

#define MOST_BRANCHES 3

/** What both passes read; `window` and `bias` may be missing. */
struct Branches {
  const T *gates, *bias;
  const T *o[MOST_BRANCHES];
  int count, heads, width;
};

/** g = sigmoid(gates + bias) of a row's branches. */
__device__ inline void loadGates(float (&g)[MOST_BRANCHES], const Branches &u,
                                 i64 row) {
  int head = (unsigned)row % u.heads;
#pragma unroll
  for (int branch = 0; branch < MOST_BRANCHES; branch++) {
    if (branch == u.count) break;
    float logit = widen(u.gates[row * u.count + branch]);
    if (u.bias) logit += widen(u.bias[head * u.count + branch]);
    g[branch] = sigmoid(logit);
  }
}

/** y[n, i] = sum over branches of g o; a thread a piece of a row */
extern "C" __global__ void gatedSum(Branches u, T *y, i64 rows) {
  int pieces = (u.width + PIECE - 1) / PIECE;
  i64 row = globalIndex() / pieces;
  if (row >= rows) return;
  int c = globalIndex() % pieces * PIECE;
  bool aligned = u.width % PIECE == 0;
  float g[MOST_BRANCHES];
  loadGates(g, u, row);
  float sum[PIECE];
  clear(sum);
#pragma unroll
  for (int branch = 0; branch < MOST_BRANCHES; branch++) {
    if (branch == u.count) break;
    float x[PIECE];
    loadPiece(x, u.o[branch] + row * u.width, c, u.width, aligned);
#pragma unroll
    for (int n = 0; n < PIECE; n++) sum[n] += g[branch] * x[n];
  }
  storePiece(y + row * u.width, c, u.width, sum, aligned);
}

struct Gradients {
  T *gates;
  T *o[MOST_BRANCHES];
};

/**
 * dO = g dY
 * dGates = g (1 - g) (dY . o); terms are the same unrounded, for dBias
 */
extern "C" __global__ void gatedSumBackward(Branches u, const T *dY,
                                            Gradients d, f32 *terms, i64 rows) {
  i64 row = globalIndex() / LANES;
  // Lanes without a row take part in the sums.
  bool isRow = row < rows;
  bool aligned = u.width % PIECE == 0;
  float g[MOST_BRANCHES] = {};
  float dots[MOST_BRANCHES] = {};
  if (isRow) loadGates(g, u, row);
  int width = isRow ? u.width : 0;
  for (int c = threadIdx.x % LANES * PIECE; c < width; c += LANES * PIECE) {
    float dy[PIECE];
    loadPiece(dy, dY + row * u.width, c, u.width, aligned);
#pragma unroll
    for (int branch = 0; branch < MOST_BRANCHES; branch++) {
      if (branch == u.count) break;
      float x[PIECE];
      loadPiece(x, u.o[branch] + row * u.width, c, u.width, aligned);
#pragma unroll
      for (int n = 0; n < PIECE; n++) {
        dots[branch] += dy[n] * x[n];
        x[n] = g[branch] * dy[n];
      }
      storePiece(d.o[branch] + row * u.width, c, u.width, x, aligned);
    }
  }
#pragma unroll
  for (int branch = 0; branch < MOST_BRANCHES; branch++) {
    if (branch == u.count) break;
    float gradient = g[branch] * (1 - g[branch]) * rowSum(dots[branch]);
    if (!isRow || threadIdx.x % LANES > 0) continue;
    d.gates[row * u.count + branch] = narrow<T>(gradient);
    if (terms) terms[row * u.count + branch] = gradient;
  }
}
