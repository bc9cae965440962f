#include "common.cuh"

/** loss[n] = lse[n] - logits[n, targets[n]], 0 where the target is -1 */
extern "C" __global__ void crossEntropy(const T *logits, const int *targets,
                                        float *loss, float *lse,
                                        int vocabulary) {
  i64 n = blockIdx.x;
  logits += n * vocabulary;
  float most = -INFINITE;
  for (int v = threadIdx.x; v < vocabulary; v += blockDim.x) {
    most = fmaxf(most, widen(logits[v]));
  }
  most = blockMax(most);
  float sum = 0;
  for (int v = threadIdx.x; v < vocabulary; v += blockDim.x) {
    sum += expf(widen(logits[v]) - most);
  }
  float all = most + logf(blockSum(sum));
  if (threadIdx.x > 0) return;
  int target = targets[n];
  lse[n] = all;
  loss[n] = target == -1 ? 0 : all - widen(logits[target]);
}

/** dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]) */
extern "C" __global__ void crossEntropyBackward(const T *logits,
                                                const int *targets,
                                                const float *lse,
                                                const float *dLoss, T *dLogits,
                                                i64 count, int vocabulary) {
  i64 i = globalIndex();
  if (i >= count) return;
  i64 n = i / vocabulary;
  int target = targets[n];
  float p = expf(widen(logits[i]) - lse[n]) - (i % vocabulary == target);
  dLogits[i] = narrow<T>(target == -1 ? 0 : dLoss[n] * p);
}
