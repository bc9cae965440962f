#include "common.cuh"

/** What both passes read; `window` and `bias` may be missing. */
struct Branches {
  const T *gates, *bias;
  const T *o[3];
  int count, heads, width;
};

__device__ float gateOf(const Branches &u, i64 row, int branch) {
  float logit = widen(u.gates[row * u.count + branch]);
  if (u.bias) logit += widen(u.bias[(row % u.heads) * u.count + branch]);
  return sigmoid(logit);
}

/** y[n, i] = sum over branches of sigmoid(gates[n, i, branch] + bias) o */
extern "C" __global__ void gatedSum(Branches u, T *y, i64 count) {
  i64 i = globalIndex();
  if (i >= count) return;
  float sum = 0;
  for (int branch = 0; branch < u.count; branch++) {
    sum += gateOf(u, i / u.width, branch) * widen(u.o[branch][i]);
  }
  y[i] = narrow<T>(sum);
}

struct Gradients {
  T *gates;
  T *o[3];
};

/**
 * dO = g dY
 * dGates = g (1 - g) (dY . o); terms are the same unrounded, for dBias
 */
extern "C" __global__ void gatedSumBackward(Branches u, const T *dY,
                                            Gradients d, f32 *terms) {
  i64 row = blockIdx.x;
  for (int branch = 0; branch < u.count; branch++) {
    float g = gateOf(u, row, branch);
    float dot = 0;
    for (int c = threadIdx.x; c < u.width; c += blockDim.x) {
      i64 at = row * u.width + c;
      float dy = widen(dY[at]);
      dot += dy * widen(u.o[branch][at]);
      d.o[branch][at] = narrow<T>(g * dy);
    }
    float gradient = g * (1 - g) * blockSum(dot);
    if (threadIdx.x > 0) continue;
    d.gates[row * u.count + branch] = narrow<T>(gradient);
    if (terms) terms[row * u.count + branch] = gradient;
  }
}
