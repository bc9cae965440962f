// Draws a token for each row of logits; a block a row. Logits are ranked by
// keys, whole numbers of the same order: the least key that top-k or top-p
// keeps is found bit by bit, and of the tokens that have it the first ones are
// kept.
#include "common.cuh"

#define THREADS 256
#define NONE 0xffffffffu

struct Settings {
  float temperature, topK, topP, minP, random;
};

/** A row, as every step sees it. */
struct Row {
  const T *logits;
  unsigned width, best;
  float temperature;
};

/** -0 and 0 are one number. */
__device__ unsigned keyOf(float x) {
  unsigned bits = __float_as_uint(x);
  if (bits == 0x80000000) return bits;
  return bits >= 0x80000000 ? ~bits : bits | 0x80000000;
}
__device__ float valueOf(unsigned key) {
  return __uint_as_float(key >= 0x80000000 ? key & 0x7fffffff : ~key);
}
__device__ float weightOf(unsigned key, unsigned best, float temperature) {
  // Keys up to that of -infinity.
  if (key <= 0x007fffff) return 0;
  return expf((valueOf(key) - valueOf(best)) / temperature);
}

__device__ unsigned least(unsigned x) {
  __shared__ unsigned all;
  __syncthreads();
  if (threadIdx.x == 0) all = NONE;
  __syncthreads();
  atomicMin(&all, x);
  __syncthreads();
  return all;
}
__device__ unsigned greatest(unsigned x) { return ~least(~x); }

/** The sum over the row's tokens of what `measure` makes of their keys. */
template <typename V, typename F> __device__ V total(const Row &row, F measure) {
  V sum = 0;
  for (unsigned i = threadIdx.x; i < row.width; i += THREADS) {
    sum += measure(keyOf(widen(row.logits[i])));
  }
  return blockSum(sum);
}
template <typename F> __device__ unsigned countKeys(const Row &row, F holds) {
  return total<unsigned>(row, [&](unsigned key) -> unsigned { return holds(key); });
}
template <typename F> __device__ float sumWeights(const Row &row, F holds) {
  return total<float>(row, [&](unsigned key) {
    return holds(key) ? weightOf(key, row.best, row.temperature) : 0;
  });
}

/** The largest key for which `holds`, which is true of 0. */
template <typename F> __device__ unsigned largestKey(F holds) {
  unsigned found = 0;
  for (int bit = 31; bit >= 0; bit--) {
    unsigned candidate = found | 1u << bit;
    if (holds(candidate)) found = candidate;
  }
  return found;
}

/** Tokens above `least` are kept, and the first `room` of those at it. */
struct Kept {
  unsigned least, room;
};

__device__ Kept keepTopK(const Row &row, unsigned topK) {
  if (topK >= row.width) return {0, row.width};
  unsigned least = largestKey([&](unsigned candidate) {
    return countKeys(row, [=](unsigned key) { return key >= candidate; }) >= topK;
  });
  return {least, topK - countKeys(row, [=](unsigned key) { return key > least; })};
}

__device__ Kept keepTopP(const Row &row, Kept kept, float topP) {
  unsigned floor = kept.least;
  float above = sumWeights(row, [=](unsigned key) { return key > floor; });
  unsigned at = countKeys(row, [=](unsigned key) { return key == floor; });
  float unit = weightOf(floor, row.best, row.temperature);
  float share = topP * (above + min(kept.room, at) * unit);
  unsigned found = largestKey([&](unsigned candidate) {
    float held = sumWeights(row, [=](unsigned key) { return key >= candidate; });
    return candidate <= floor || held >= share;
  });
  if (found > floor) kept = {found, row.width};
  float beyond = sumWeights(row, [=](unsigned key) { return key > kept.least; });
  unit = weightOf(kept.least, row.best, row.temperature);
  // As many of the equal ones as it takes, one at least.
  float wanted = ceilf(fmaxf(share - beyond, 0) / fmaxf(unit, 1e-38f));
  kept.room = min(kept.room, max(1u, (unsigned)fminf(wanted, 16777216)));
  return kept;
}

/** The kept token in whose share of the weights the number falls. */
__device__ unsigned draw(const Row &row, Kept kept, float minP, float random) {
  __shared__ unsigned ties[THREADS];
  __shared__ float parts[THREADS];
  // Each thread has a run of tokens, so that places follow from counts.
  unsigned run = (row.width + THREADS - 1) / THREADS;
  unsigned begin = min(threadIdx.x * run, row.width);
  unsigned end = min(begin + run, row.width);
  unsigned equal = 0;
  for (unsigned i = begin; i < end; i++) {
    equal += keyOf(widen(row.logits[i])) == kept.least;
  }
  __syncthreads();
  ties[threadIdx.x] = equal;
  __syncthreads();
  unsigned before = 0;
  for (int n = 0; n < threadIdx.x; n++) before += ties[n];
  // The weight of a token that is kept, else 0; `seen` counts equal ones.
  auto weightAt = [&](unsigned i, unsigned &seen) {
    unsigned key = keyOf(widen(row.logits[i]));
    bool isKept = key > kept.least || (key == kept.least && seen++ < kept.room);
    float weight = weightOf(key, row.best, row.temperature);
    return isKept && weight >= minP ? weight : 0;
  };
  unsigned seen = before;
  unsigned last = 0;
  float own = 0;
  for (unsigned i = begin; i < end; i++) {
    float weight = weightAt(i, seen);
    if (weight > 0) last = i + 1;
    own += weight;
  }
  parts[threadIdx.x] = own;
  __syncthreads();
  float earlier = 0;
  float all = 0;
  for (int n = 0; n < THREADS; n++) {
    if (n == threadIdx.x) earlier = all;
    all += parts[n];
  }
  float left = random * all - earlier;
  unsigned drawn = NONE;
  seen = before;
  if (last > 0 && left >= 0 && left < own) {
    for (unsigned i = begin; i < end && left >= 0; i++) {
      float weight = weightAt(i, seen);
      if (weight == 0) continue;
      left -= weight;
      drawn = i;
    }
  }
  unsigned final = greatest(last);
  unsigned token = least(drawn);
  // The number lies behind the last sum, which was rounded down.
  return token == NONE ? max(final, 1u) - 1 : token;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const T *logits, const Settings *settings, int *tokens,
           float2 *chosen, int vocabulary, int width) {
  i64 r = blockIdx.x;
  Settings s = settings[r];
  Row row = {logits + r * vocabulary, (unsigned)width, 0, s.temperature};
  unsigned most = 0;
  bool isBad = false;
  for (unsigned i = threadIdx.x; i < row.width; i += THREADS) {
    float x = widen(row.logits[i]);
    most = max(most, keyOf(x));
    isBad = isBad || !(x < INFINITE);
  }
  row.best = greatest(most);
  isBad = __syncthreads_or(isBad);
  unsigned first = NONE;
  for (unsigned i = threadIdx.x; i < row.width; i += THREADS) {
    if (keyOf(widen(row.logits[i])) == row.best) first = min(first, i);
  }
  unsigned token = least(first);
  unsigned best = row.best;
  float all = total<float>(row, [=](unsigned key) { return weightOf(key, best, 1); });
  if (s.temperature > 0 && !isBad) {
    Kept kept = keepTopK(row, (unsigned)s.topK);
    if (s.topP < 1) kept = keepTopP(row, kept, s.topP);
    token = draw(row, kept, s.minP, s.random);
  }
  if (threadIdx.x > 0) return;
  tokens[r] = isBad ? -1 : (int)token;
  float logit = widen(row.logits[min(token, row.width - 1)]);
  chosen[r] = isBad ? make_float2(-1, 0)
                    : make_float2(token, logit - valueOf(best) - logf(all));
}
