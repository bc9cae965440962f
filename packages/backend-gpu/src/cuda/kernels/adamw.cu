#include "pieces.cuh"

#define THREADS 256
/** Elements of a block of threads; as in adamw.ts. */
#define ELEMENTS (4 * PIECE * THREADS)

/** A parameter with its gradient of type G, and a copy of type R where it has one. */
struct Part {
  T *parameter;
  const G *gradient;
  T *m, *v;
  R *rounded;
  i64 count;
  // 1 - lr wd
  float keep;
  // Its first block of threads.
  int start;
};
struct Parts {
  Part list[MOST];
};

struct Rates {
  float beta1, rest1, beta2, rest2;
  // lr / (1 - b1^t); 1 / (1 - b2^t)
  float rate, correction;
  float eps, clip, unscale;
};

/**
 * p -= lr wd p
 * m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
 * p -= lr m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(Parts parts, const float *squaredNorm, Rates u, int count) {
  Part part = parts.list[partOf(parts, count)];
  float factor = u.unscale;
  if (squaredNorm) {
    float length = sqrtf(*squaredNorm) * u.unscale;
    factor *= fminf(1, u.clip / (length + 1e-6f));
  }
  i64 first = (i64)((int)blockIdx.x - part.start) * ELEMENTS;
  for (int n = 0; n < ELEMENTS; n += PIECE * THREADS) {
    i64 at = first + n + PIECE * threadIdx.x;
    if (at >= part.count) break;
    choose(at + PIECE <= part.count, [&](auto piece) {
      float p[PIECE], g[PIECE], mean[PIECE], square[PIECE];
      loadPiece(g, part.gradient, at, part.count, piece);
      loadPiece(mean, part.m, at, part.count, piece);
      loadPiece(square, part.v, at, part.count, piece);
      loadPiece(p, part.parameter, at, part.count, piece);
#pragma unroll
      for (int e = 0; e < PIECE; e++) {
        float slope = g[e] * factor;
        mean[e] = u.beta1 * mean[e] + u.rest1 * slope;
        square[e] = u.beta2 * square[e] + u.rest2 * slope * slope;
        float root = sqrtf(square[e] * u.correction) + u.eps;
        p[e] = p[e] * part.keep - u.rate * mean[e] / root;
      }
      storePiece(part.parameter, at, part.count, p, piece);
      storePiece(part.m, at, part.count, mean, piece);
      storePiece(part.v, at, part.count, square, piece);
      if (part.rounded) storePiece(part.rounded, at, part.count, p, piece);
    });
  }
}
