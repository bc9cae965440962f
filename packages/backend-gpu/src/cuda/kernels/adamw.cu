#include "pieces.cuh"

struct Rates {
  float beta1, rest1, beta2, rest2;
  // 1 - lr wd; lr / (1 - b1^t); 1 / (1 - b2^t)
  float keep, rate, correction;
  float eps, clip, unscale;
};

/**
 * p -= lr wd p
 * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
 * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
 *
 * The gradient is of type G; where there is a rounded copy of p, it has type R.
 */
extern "C" __global__ void adamw(T *parameter, const G *gradient, T *m, T *v,
                                 const float *squaredNorm, R *rounded, Rates u,
                                 i64 count) {
  i64 at = PIECE * globalIndex();
  if (at >= count) return;
  choose(at + PIECE <= count, [&](auto piece) {
    float p[PIECE], g[PIECE], mean[PIECE], square[PIECE];
    loadPiece(g, gradient, at, count, piece);
    loadPiece(mean, m, at, count, piece);
    loadPiece(square, v, at, count, piece);
    loadPiece(p, parameter, at, count, piece);
    float factor = u.unscale;
    if (squaredNorm) {
      float length = sqrtf(*squaredNorm) * u.unscale;
      factor *= fminf(1, u.clip / (length + 1e-6f));
    }
#pragma unroll
    for (int n = 0; n < PIECE; n++) {
      float slope = g[n] * factor;
      mean[n] = u.beta1 * mean[n] + u.rest1 * slope;
      square[n] = u.beta2 * square[n] + u.rest2 * slope * slope;
      float root = sqrtf(square[n] * u.correction) + u.eps;
      p[n] = p[n] * u.keep - u.rate * mean[n] / root;
    }
    storePiece(parameter, at, count, p, piece);
    storePiece(m, at, count, mean, piece);
    storePiece(v, at, count, square, piece);
    if (rounded) storePiece(rounded, at, count, p, piece);
  });
}
