#include "common.cuh"

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
 */
extern "C" __global__ void adamw(T *parameter, const T *gradient, T *m, T *v,
                                 const float *squaredNorm, Rates u, i64 count) {
  i64 i = globalIndex();
  if (i >= count) return;
  float factor = u.unscale;
  if (squaredNorm) {
    float length = sqrtf(*squaredNorm) * u.unscale;
    factor *= fminf(1, u.clip / (length + 1e-6f));
  }
  float g = widen(gradient[i]) * factor;
  float mi = u.beta1 * widen(m[i]) + u.rest1 * g;
  float vi = u.beta2 * widen(v[i]) + u.rest2 * g * g;
  float root = sqrtf(vi * u.correction) + u.eps;
  parameter[i] = narrow<T>(widen(parameter[i]) * u.keep - u.rate * mi / root);
  m[i] = narrow<T>(mi);
  v[i] = narrow<T>(vi);
}
