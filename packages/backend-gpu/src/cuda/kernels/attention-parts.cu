// What the passes of attention need beside them.
#include "pieces.cuh"

/** Of a row its LSE, 0 where it is -inf, and dO . o. */
__device__ inline float2 statisticsOf(float lse, float delta) {
  return make_float2(lse == -INFINITE ? 0 : lse, delta);
}

/** Of all rows, where dO . o is known; a thread a row. */
extern "C" __global__ void packStatistics(const float *lse, const float *delta,
                                          float2 *statistics, i64 rows) {
  i64 row = globalIndex();
  if (row < rows) statistics[row] = statisticsOf(lse[row], delta[row]);
}

/** The same where it is not; LANES lanes a row. */
extern "C" __global__ void rowStatistics(const T *o, const float *lse,
                                         const T *dO, float2 *statistics,
                                         i64 rows, int width) {
  i64 row = globalIndex() / LANES;
  int columns = row < rows ? width : 0;
  float delta = 0;
  choose(width % PIECE == 0, [&](auto piece) {
    for (int c = threadIdx.x % LANES * PIECE; c < columns; c += LANES * PIECE) {
      float x[PIECE], y[PIECE];
      loadPiece(x, dO + row * width, c, width, piece);
      loadPiece(y, o + row * width, c, width, piece);
#pragma unroll
      for (int n = 0; n < PIECE; n++) delta += x[n] * y[n];
    }
  });
  delta = rowSum(delta);
  if (row >= rows || threadIdx.x % LANES > 0) return;
  statistics[row] = statisticsOf(lse[row], delta);
}

/** Parts that a warp of `joinParts` asks for at once. */
#define AHEAD 8

/**
 * o = sum over a row's parts p of e^(lse_p - lse) o_p; a part that saw nothing
 * has no o_p. A block of 8 warps has 32 columns of a row, and its warps take
 * turns at the parts. Each asks for its first parts before it knows their
 * weights, and works those out by itself: they meet only to add their sums.
 */
extern "C" __global__ void __launch_bounds__(256)
    joinParts(const f32 *partO, const float *partLse, T *o, float *lse,
              int parts, int width) {
  letNextStart();
  awaitEarlier();
  __shared__ float sums[8][32];
  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  i64 row = blockIdx.x;
  int c = blockIdx.y * 32 + lane;
  const f32 *from = partO + row * parts * width + min(c, width - 1);
  const float *own = partLse + row * parts;
  float ahead[AHEAD];
#pragma unroll
  for (int n = 0; n < AHEAD; n++) {
    int p = warp + 8 * n;
    ahead[n] = p < parts ? from[(i64)p * width] : 0;
  }
  float top = -INFINITE;
  for (int p = lane; p < parts; p += 32) top = fmaxf(top, own[p]);
  top = warpMax(top);
  float reference = top == -INFINITE ? 0 : top;
  float total = 0;
  for (int p = lane; p < parts; p += 32) total += expf(own[p] - reference);
  total = warpSum(total);

  float sum = 0;
  auto add = [&](int p, float x) {
    float weight = expf(own[p] - reference);
    sum += weight > 0 ? weight * x : 0;
  };
#pragma unroll
  for (int n = 0; n < AHEAD; n++) {
    int p = warp + 8 * n;
    if (p < parts) add(p, ahead[n]);
  }
#pragma unroll 4
  for (int p = warp + 8 * AHEAD; p < parts; p += 8) add(p, from[(i64)p * width]);
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0) return;
  for (int w = 1; w < 8; w++) sum += sums[w][lane];
  if (c < width) o[row * width + c] = narrow<T>(total == 0 ? 0 : sum / total);
  if (c == 0) lse[row] = total == 0 ? -INFINITE : top + logf(total);
}

/** y[n, c] = sum over g of x[n, g, c] */
extern "C" __global__ void sumHeads(const f32 *x, T *y, i64 count, int heads,
                                    int width) {
  i64 i = globalIndex();
  if (i >= count) return;
  float sum = 0;
  for (int g = 0; g < heads; g++) {
    sum += x[(i / width * heads + g) * width + i % width];
  }
  y[i] = narrow<T>(sum);
}

/**
 * The inverse of the lists: bit `leader` of the words of (sequence, list,
 * block) says whether the leader chose the block. A thread a list; bits only
 * ever rise, so the order of the threads does not matter.
 */
extern "C" __global__ void invertLists(const int *indices,
                                       const Sequence *sequences,
                                       unsigned *chosenBy, int lists, int count,
                                       int sharing, int words, int blocks) {
  Sequence s = sequences[blockIdx.z];
  i64 i = globalIndex();
  int leader = i / lists;
  int list = i % lists;
  if (leader >= (s.queryCount + sharing - 1) / sharing) return;
  const int *own = indices + ((i64)(s.leaderStart + leader) * lists + list) * count;
  for (int n = 0; n < count; n++) {
    if (own[n] < 0 || own[n] >= blocks) continue;
    i64 word = (((i64)blockIdx.z * lists + list) * blocks + own[n]) * words;
    atomicOr(chosenBy + word + leader / 32, 1u << leader % 32);
  }
}

/**
 * The blocks of a list as bits: bit s of `[L, lists, words]` says whether it has
 * keys 16 s .. 16 s + 15; a block has `sixteens` of them. A thread a word.
 */
extern "C" __global__ void listMasks(const int *indices, unsigned *masks,
                                     i64 lists, int count, int words,
                                     int sixteens) {
  i64 i = globalIndex();
  if (i >= lists * words) return;
  const int *own = indices + i / words * count;
  int from = (int)(i % words) * 32;
  unsigned mask = 0;
#pragma unroll 8
  for (int n = 0; n < count; n++) {
    // Where the block's bits begin and end, in those of the word.
    int first = own[n] * sixteens - from;
    int end = first + sixteens;
    if (own[n] < 0 || first >= 32 || end <= 0) continue;
    unsigned bits = end >= 32 ? ~0u : (1u << end) - 1;
    mask |= first > 0 ? bits & ~0u << first : bits;
  }
  masks[i] = mask;
}

/**
 * The inverse of the lists of leaders `firstLeader ..`, with their places: at
 * which place of its list a leader has the block, counted from 1, 0 where it has
 * not; `[B, lists, blocks, leaders]`. A thread a place of a list.
 */
extern "C" __global__ void listPlaces(const int *indices,
                                      const Sequence *sequences,
                                      unsigned short *places, int lists,
                                      int count, int sharing, int blocks,
                                      int firstLeader, int leaders) {
  Sequence s = sequences[blockIdx.z];
  i64 i = globalIndex();
  int place = i % count;
  int list = i / count % lists;
  i64 leader = i / count / lists;
  int known = (s.queryCount + sharing - 1) / sharing;
  if (leader >= leaders || firstLeader + leader >= known) return;
  i64 row = s.leaderStart + firstLeader + leader;
  int block = indices[(row * lists + list) * count + place];
  if (block < 0 || block >= blocks) return;
  i64 own = ((i64)blockIdx.z * lists + list) * blocks + block;
  places[own * leaders + leader] = place + 1;
}
