// Z_t = a_t Z_{t-1} + u_t w_t^T, result_t[x] = scale sum over y of
// Z_t[x, y] r_t[y]: every recurrence of linear attention, forwards or backwards
// in time. Four lanes share a row of Z, each with every fourth column in
// registers; PLACES is how many.
#include "common.cuh"

#define THREADS 128
#define ROWS (THREADS / 4)
/** Every so manyth row's state is kept; as in linear-attention.ts. */
#define MARKED 64

struct Decay {
  const T *decay, *bias;
  float temperature;
  int heads;
};

__device__ float logitOf(const Decay &u, i64 row, int h) {
  return widen(u.decay[row]) + (u.bias ? widen(u.bias[h]) : 0);
}

/** a = sigmoid(decay + bias)^(1 / temperature) */
__device__ float decayOf(const Decay &u, i64 row, int h) {
  float x = logitOf(u, row, h);
  return expf((fminf(x, 0) - log1pf(expf(-fabsf(x)))) / u.temperature);
}

struct Scan {
  // u [N, H, X], of which four lanes keep a channel; w, r [N, H, Y].
  const T *across, *along, *read;
  const Sequence *sequences;
  // Z before and behind, `[S, H, Y, X]`; may be missing.
  const f32 *state;
  f32 *last;
  // The result again, unrounded; may be missing.
  f32 *fine;
  // Z before each MARKEDth row, on the way back behind it: `[N / MARKED + 1, H, Y, X]`;
  // may be missing.
  f32 *marked;
  T *result;
  int x, y;
  float scale;
  int backwards;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    linearScan(Scan u, Decay decay) {
  int lane = threadIdx.x % 4;
  int x = blockIdx.x * ROWS + threadIdx.x / 4;
  int h = blockIdx.y;
  Sequence s = u.sequences[blockIdx.z];
  bool isRow = x < u.x;
  i64 at = ((i64)blockIdx.z * decay.heads + h) * u.x * u.y + x;
  float Z[PLACES];
#pragma unroll
  for (int n = 0; n < PLACES; n++) {
    int y = 4 * n + lane;
    Z[n] = u.state && isRow && y < u.y ? u.state[at + (i64)y * u.x] : 0;
  }
  for (int i = 0; i < s.queryCount; i++) {
    int t = s.queryStart + (u.backwards ? s.queryCount - 1 - i : i);
    i64 row = (i64)t * decay.heads + h;
    float a = 0;
    if (!u.backwards) {
      a = decayOf(decay, row, h);
    } else if (i > 0) {
      a = decayOf(decay, row + decay.heads, h);
    }
    float value = isRow ? widen(u.across[row * u.x + x]) : 0;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < PLACES; n++) {
      int y = 4 * n + lane;
      if (y >= u.y) continue;
      Z[n] = a * Z[n] + value * widen(u.along[row * u.y + y]);
      sum += Z[n] * widen(u.read[row * u.y + y]);
    }
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    int mark = u.backwards ? t : t + 1;
    if (u.marked && isRow && mark % MARKED == 0) {
      f32 *to = u.marked +
                ((i64)mark / MARKED * decay.heads + h) * u.x * u.y + x;
#pragma unroll
      for (int n = 0; n < PLACES; n++) {
        int y = 4 * n + lane;
        if (y < u.y) to[(i64)y * u.x] = Z[n];
      }
    }
    if (!isRow || lane > 0) continue;
    u.result[row * u.x + x] = narrow<T>(u.scale * sum);
    if (u.fine) u.fine[row * u.x + x] = u.scale * sum;
  }
  if (!u.last || !isRow) return;
#pragma unroll
  for (int n = 0; n < PLACES; n++) {
    int y = 4 * n + lane;
    if (y < u.y) u.last[at + (i64)y * u.x] = Z[n];
  }
}

/**
 * d(log a_t) = d(log a_t+1) + q_t . dQ_t - k_t . dK_t
 *            = a_t sum over x, y of S_t-1[x, y] dS_t[x, y], dS in units of `scale`
 * of which the second, at rows whose states are marked, ends the errors that the
 * first one's differences add up.
 * dDecay_t = d(log a_t) (1 - sigmoid(decay_t + bias)) / temperature
 *
 * A warp a head and sequence. At its first row the state is 0: that row's
 * decay has no effect. Terms are the same unrounded, for dBias.
 */
extern "C" __global__ void linearDecay(const T *q, const T *k, const f32 *fineQ,
                                       const f32 *fineK,
                                       const Sequence *sequences, Decay decay,
                                       const f32 *before, const f32 *behind,
                                       int size, float scale,
                                       T *dDecay, f32 *terms, int width) {
  int lane = threadIdx.x;
  int h = blockIdx.y;
  Sequence s = sequences[blockIdx.z];
  float sum = 0;
  for (int i = s.queryCount - 1; i >= 0; i--) {
    i64 row = (i64)(s.queryStart + i) * decay.heads + h;
    float term = 0;
    for (int c = lane; c < width; c += 32) {
      i64 at = row * width + c;
      term += widen(q[at]) * fineQ[at] - widen(k[at]) * fineK[at];
    }
    sum += warpSum(term);
    int t = s.queryStart + i;
    // The states before a sequence's first row are of the sequence before it.
    if (i > 0 && t % MARKED == 0) {
      i64 mark = ((i64)t / MARKED * decay.heads + h) * size;
      float product = 0;
      for (int n = lane; n < size; n += 32) {
        product += before[mark + n] * behind[mark + n];
      }
      sum = scale * decayOf(decay, row, h) * warpSum(product);
    }
    if (lane > 0) continue;
    float d = i == 0 ? 0 : sum * sigmoid(-logitOf(decay, row, h));
    dDecay[row] = narrow<T>(d / decay.temperature);
    terms[row] = d / decay.temperature;
  }
}
