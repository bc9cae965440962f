// The list of a leader and group, a block of threads a list: where lists are so
// few that a warp each would leave the card idle. Importance is made here as well,
// of the probabilities of compressed blocks that `blockProbabilities` left. Where
// HELD is not 0, lanes keep so many ranks each; else they make them again.
#include "choice.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)
/** The last rank that is chosen is found BITS at a time, of the 31 it has. */
#define BITS 11
#define PASSES 3
/** Of each pass, four a thread. */
#define BINS (1 << BITS)
static_assert(BINS == 4 * THREADS, "a thread's bins");

/** The last rank's bits as far as they are known. */
struct Found {
  unsigned bits;
  // How many ranks that have them are chosen, and how many there are.
  int room, all;
};

/** The sum of what the warps before have counted. */
__device__ inline int sumBefore(int warp, const int *counts) {
  int lane = threadIdx.x % 32;
  return sumOfLanes(lane < warp ? counts[lane] : 0);
}

/**
 * F, then the best others by (P descending, j ascending); ascending; -1 behind.
 * `p` has `pitch` numbers a row, of blocks of `length` tokens every `stride`;
 * P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k]
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    chooseFew(Ranks ranks, Choice u, const float *probabilities,
              const int *previous, int *indices, int pitch, int length,
              int stride) {
  __shared__ int4 bins[PASSES][BINS / 4];
  __shared__ int sums[WARPS], chosen[WARPS], tied[WARPS];
  __shared__ Found found;
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    bins[pass][threadIdx.x] = make_int4(0, 0, 0, 0);
  }
  List list(ranks, u, previous, indices, blockIdx.x / ranks.groups,
            blockIdx.x % ranks.groups);
  if (list.own == 0) return;
  if (list.known) {
#pragma unroll 1
    for (int n = threadIdx.x; n < u.count; n += THREADS) {
      list.chosen[n] = list.known[n];
    }
    return;
  }

  const float *p = probabilities + list.row * pitch;
  int blocks = blocksOf(list.t + 1, length, stride);
  int lane = threadIdx.x % 32;
  int warp = threadIdx.x / 32;
  int steps = HELD > 0 ? HELD : (list.own + THREADS - 1) / THREADS;
  // A warp has blocks that follow one another, as their order stays.
  auto blockOf = [&](int n) { return 32 * (steps * warp + n) + lane; };
  auto importance = [&](int n) {
    float sum = 0;
#pragma unroll
    for (int offset = 1 - LENGTH_STRIDES; offset < BLOCK_STRIDES; offset++) {
      int b = blockOf(n) * BLOCK_STRIDES + offset;
      int pairs = pairsAt(offset, BLOCK_STRIDES, LENGTH_STRIDES);
      sum += pairs * (b >= 0 && b < blocks ? p[b] : 0);
    }
    return __float_as_uint(sum);
  };
  unsigned held[HELD > 0 ? HELD : 1];
#pragma unroll
  for (int n = 0; n < HELD; n++) held[n] = importance(n);
#pragma unroll
  for (int n = 0; n < HELD; n++) {
    held[n] = list.rank(u, blockOf(n), held[n]);
  }
  auto rankOf = [&](int n) {
    return HELD > 0 ? held[HELD > 0 ? n : 0]
                    : list.rank(u, blockOf(n), importance(n));
  };
  __syncthreads();

  unsigned least = 0, known = 0;
  int room = u.count;
  for (int pass = 0; pass < PASSES && list.own > u.count; pass++) {
    int shift = max(0, 31 - BITS * (pass + 1));
    int *counts = (int *)bins[pass];
#pragma unroll
    for (int n = 0; n < steps; n++) {
      unsigned bits = rankOf(n);
      if (bits == 0 || ((bits ^ least) & known) != 0) continue;
      // The largest come first.
      atomicAdd(&counts[BINS - 1 - (bits >> shift & (BINS - 1))], 1);
    }
    __syncthreads();
    // Four bins a thread: how many ranks are in those, and before them.
    int4 four = bins[pass][threadIdx.x];
    int sum = four.x + four.y + four.z + four.w;
    int upTo = sum;
#pragma unroll
    for (int reach = 1; reach < 32; reach *= 2) {
      int other = __shfl_up_sync(0xffffffff, upTo, reach);
      upTo += lane < reach ? 0 : other;
    }
    if (lane == 31) sums[warp] = upTo;
    __syncthreads();
    int before = upTo - sum + sumBefore(warp, sums);
    if (before < room && before + sum >= room) {
      int own[] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (before < room && before + own[i] >= room) {
          unsigned digit = BINS - 1 - (4 * threadIdx.x + i);
          found = {least | digit << shift, room - before, own[i]};
        }
        before += own[i];
      }
    }
    __syncthreads();
    least = found.bits;
    room = found.room;
    known = ~0u << shift;
    // All that have these bits, whatever the others are.
    if (room == found.all) break;
  }

  int above = 0, alike = 0;
#pragma unroll
  for (int n = 0; n < steps; n++) {
    unsigned bits = rankOf(n);
    above += __popc(__ballot_sync(0xffffffff, bits > least));
    alike += __popc(__ballot_sync(0xffffffff, bits > 0 && bits == least));
  }
  if (lane == 0) {
    chosen[warp] = above;
    tied[warp] = alike;
  }
  __syncthreads();
  int equal = min(room, sumBefore(warp, tied));
  int place = sumBefore(warp, chosen) + equal;
  Writer writer = {list.chosen, least, place, room - equal};
#pragma unroll
  for (int n = 0; n < steps; n++) writer.write(blockOf(n), rankOf(n));
#pragma unroll 1
  for (int n = threadIdx.x; n < u.count; n += THREADS) {
    if (n >= list.own) list.chosen[n] = -1;
  }
}
