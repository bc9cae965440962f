#include "common.cuh"

/** r = 1 / sqrt(mean(x^2) + eps) of a block's row */
__device__ float inverseRoot(const T *x, int width, float eps) {
  float squares = 0;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float value = widen(x[c]);
    squares += value * value;
  }
  return 1 / sqrtf(blockSum(squares) / width + eps);
}

/** y = w x r; a block a row */
extern "C" __global__ void rmsNorm(const T *x, const T *weight, T *y, int width,
                                   int norms, float eps) {
  i64 row = blockIdx.x;
  x += row * width;
  y += row * width;
  weight += (row % norms) * width;
  float r = inverseRoot(x, width, eps);
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    y[c] = narrow<T>(widen(weight[c]) * widen(x[c]) * r);
  }
}

/**
 * dx = r w dy - x r^3 mean(w dy x)
 * terms = dy x r, whose sum over rows is dw
 */
extern "C" __global__ void rmsNormBackward(const T *x, const T *weight,
                                           const T *dy, T *dx, f32 *terms,
                                           int width, int norms, float eps) {
  i64 row = blockIdx.x;
  x += row * width;
  dy += row * width;
  dx += row * width;
  terms += row * width;
  weight += (row % norms) * width;
  float r = inverseRoot(x, width, eps);
  float sum = 0;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float d = widen(dy[c]) * widen(x[c]);
    terms[c] = d * r;
    sum += d * widen(weight[c]);
  }
  float pull = r * r * r * blockSum(sum) / width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float d = r * widen(weight[c]) * widen(dy[c]);
    dx[c] = narrow<T>(d - pull * widen(x[c]));
  }
}
