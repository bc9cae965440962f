#include "pieces.cuh"

#define THREADS 256

/**
 * loss[n] = lse[n] - logits[n, targets[n]], 0 where the target is -1. A block a
 * row, which it reads once: a thread's sum is in units of e to its own maximum.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    crossEntropy(const T *logits, const int *targets, float *loss, float *lse,
                 int vocabulary) {
  i64 n = blockIdx.x;
  logits += n * vocabulary;
  float most = -INFINITE;
  float sum = 0;
  choose(vocabulary % PIECE == 0, [&](auto piece) {
    float next[PIECE];
    int v = threadIdx.x * PIECE;
    if (v < vocabulary) loadPiece(next, logits, v, vocabulary, piece);
    for (; v < vocabulary; v += THREADS * PIECE) {
      float x[PIECE];
      float top = most;
#pragma unroll
      for (int i = 0; i < PIECE; i++) {
        x[i] = v + i < vocabulary ? next[i] : -INFINITE;
        top = fmaxf(top, x[i]);
      }
      // Behind the thread, while it sums.
      int ahead = v + THREADS * PIECE;
      if (ahead < vocabulary) loadPiece(next, logits, ahead, vocabulary, piece);
      if (top == -INFINITE) continue;
      sum *= expf(most - top);
      most = top;
#pragma unroll
      for (int i = 0; i < PIECE; i++) sum += expf(x[i] - top);
    }
  });
  float top = blockMax(most);
  float all = top + logf(blockSum(most == -INFINITE ? 0 : sum * expf(most - top)));
  if (threadIdx.x > 0) return;
  int target = targets[n];
  lse[n] = all;
  loss[n] = target == -1 ? 0 : all - widen(logits[target]);
}

/**
 * dLogits[n, v] = dLoss[n] (exp(logits[n, v] - lse[n]) - [v = target]); `blocks`
 * blocks a row.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    crossEntropyBackward(const T *logits, const int *targets, const float *lse,
                         const float *dLoss, T *dLogits, int vocabulary,
                         int blocks) {
  i64 n = blockIdx.x / blocks;
  int v = (blockIdx.x % blocks * THREADS + threadIdx.x) * PIECE;
  if (v >= vocabulary) return;
  int target = targets[n];
  float all = lse[n];
  float d = target == -1 ? 0 : dLoss[n];
  choose(vocabulary % PIECE == 0, [&](auto piece) {
    float x[PIECE];
    loadPiece(x, logits + n * vocabulary, v, vocabulary, piece);
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
      float p = expf(x[i] - all) - (v + i == target);
      x[i] = target == -1 ? 0 : d * p;
    }
    storePiece(dLogits + n * vocabulary, v, vocabulary, x, piece);
  });
}
