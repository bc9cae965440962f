// The list of a leader and group from its importance; a warp a list. Where HELD
// is not 0, lanes keep so many blocks each in registers; else they read the row
// again.
#include "choice.cuh"

#define THREADS 256
/** Ranks that a warp searches in registers, two a lane. */
#define MOST_FOUND 64
/** F, then the best others by (P descending, j ascending); ascending; -1 behind */
extern "C" __global__ void __launch_bounds__(THREADS)
    selectBlocks(Ranks ranks, Choice u, const float *importance,
                 const int *previous, int *indices) {
  __shared__ unsigned above[THREADS / 32][MOST_FOUND];
  i64 number = globalIndex() / 32;
  int lane = threadIdx.x % 32;
  unsigned before = (1u << lane) - 1;
  unsigned *candidates = above[threadIdx.x / 32];
  List list(ranks, u, previous, indices, number / ranks.groups,
            number % ranks.groups);
  if (list.own == 0) return;
  if (list.known) {
    for (int n = lane; n < u.count; n += 32) list.chosen[n] = list.known[n];
    return;
  }

  const float *P = importance + list.row * ranks.places;
  int own = list.own;
  int wanted = u.count;
  auto load = [&](int n) {
    int j = 32 * n + lane;
    return j < own ? __float_as_uint(P[j]) : 0;
  };
  auto rank = [&](int n, unsigned bits) {
    return list.rank(u, 32 * n + lane, bits);
  };
  // All are on their way at once, as 0 behind the list's own block. Where they
  // are used it is asked now and then whether that is all.
  auto isBehind = [&](int n) { return HELD > 4 && n % 4 == 0 && 32 * n >= own; };
  unsigned held[HELD > 0 ? HELD : 1];
#pragma unroll
  for (int n = 0; n < HELD; n++) held[n] = load(n);
#pragma unroll
  for (int n = 0; n < HELD; n++) {
    if (isBehind(n)) break;
    held[n] = rank(n, held[n]);
  }
  auto rankOf = [&](int n) {
    return HELD > 0 ? held[HELD > 0 ? n : 0] : rank(n, load(n));
  };
  int steps = HELD > 0 ? HELD : (own + 31) / 32;
  auto reach = [&](unsigned least) {
    int reached = 0;
#pragma unroll
    for (int n = 0; n < steps; n++) {
      if (isBehind(n)) break;
      reached += rankOf(n) >= least;
    }
    return warpSum(reached);
  };

  // The largest rank that `wanted` of two ranks a lane reach, or a smaller one
  // that no more do; bit by bit.
  auto reachBoth = [&](unsigned x, unsigned y, unsigned least) {
    return __popc(__ballot_sync(0xffffffff, x >= least)) +
           __popc(__ballot_sync(0xffffffff, y >= least));
  };
  auto search = [&](auto reached) {
    unsigned least = 0;
    // Forced blocks, which are not too many, are all that may have all bits.
    for (int bit = 30; bit >= 0; bit--) {
      unsigned candidate = least | 1u << bit;
      int count = reached(candidate);
      if (count >= wanted) least = candidate;
      if (count == wanted) break;
    }
    return least;
  };
  // The rank of the last that is chosen, and how many of that rank are. Each
  // lane's most and second most already tell what it is at least: few others
  // are above that, and are all that has to be searched.
  unsigned least = 0;
  int room = wanted;
  if (own > wanted) {
    unsigned most = 0, second = 0;
#pragma unroll
    for (int n = 0; n < steps; n++) {
      if (isBehind(n)) break;
      unsigned bits = rankOf(n);
      second = max(second, min(most, bits));
      most = max(most, bits);
    }
    unsigned low = search(
        [&](unsigned least) { return reachBoth(most, second, least); });
    low = max(low, 1);
    int found = 0;
#pragma unroll
    for (int n = 0; n < steps; n++) {
      if (isBehind(n)) break;
      unsigned bits = rankOf(n);
      unsigned is = __ballot_sync(0xffffffff, bits >= low);
      if (is == 0) continue;
      int at = found + __popc(is & before);
      if (bits >= low && at < MOST_FOUND) candidates[at] = bits;
      found += __popc(is);
    }
    __syncwarp();
    if (found <= MOST_FOUND) {
      unsigned x = lane < found ? candidates[lane] : 0;
      unsigned y = lane + 32 < found ? candidates[lane + 32] : 0;
      auto reached = [&](unsigned least) { return reachBoth(x, y, least); };
      // Some that were not found may reach what tells those that were apart.
      least = max(search(reached), low);
      room -= min(wanted, reached(least + 1));
    } else {
      least = search(reach);
      room -= min(wanted, reach(least + 1));
    }
  }
  Writer writer = {list.chosen, least, 0, room};
#pragma unroll
  for (int n = 0; n < steps; n++) {
    if (isBehind(n)) break;
    writer.write(32 * n + lane, rankOf(n));
  }
  for (int n = writer.place + lane; n < wanted; n += 32) list.chosen[n] = -1;
}
