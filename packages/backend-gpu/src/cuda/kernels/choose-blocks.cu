// The list of a leader and group from its importance; a warp a list. Where HELD
// is not 0, lanes keep so many blocks each in registers; else they read the row
// again.
#include "ranks.cuh"

struct Choice {
  const Sequence *sequences;
  int blockSize, sharing;
  int count, initial, local;
};

/** F, then the best others by (P descending, j ascending); ascending */
extern "C" __global__ void __launch_bounds__(256)
    selectBlocks(Ranks ranks, Choice u, const float *importance,
                 const int *previous, int *indices) {
  i64 number = globalIndex() / 32;
  int lane = threadIdx.x % 32;
  int group = number % ranks.groups;
  int leader = ranks.first + number / ranks.groups;
  if (number / ranks.groups >= ranks.count) return;
  Sequence s = u.sequences[blockIdx.z];
  int past = s.keyCount - s.queryCount;
  int t = (past / u.sharing + leader) * u.sharing;
  if (t >= s.keyCount || s.queryCount == 0) return;
  int *list =
      indices + ((i64)(s.leaderStart + leader) * ranks.groups + group) * u.count;
  if (t < past) {
    const int *known = previous + (blockIdx.z * ranks.groups + group) * u.count;
    for (int n = lane; n < u.count; n += 32) list[n] = known[n];
    return;
  }

  const float *P =
      importance + (ranks.rowOf(s, leader) * ranks.groups + group) * ranks.places;
  int own = t / u.blockSize + 1;
  int forced = min(own, min(u.initial, own) + min(u.local, own));
  int wanted = u.count - forced;
  auto isForced = [&](int j) { return j < u.initial || j + u.local >= own; };
  // Bits of what is not negative have the order of the numbers; 0 for blocks
  // that are no choice.
  auto rank = [&](int n) {
    int j = 32 * n + lane;
    bool isOther = j < own && !isForced(j);
    return isOther ? (__float_as_uint(P[j]) & 0x7fffffff) + 1 : 0;
  };
  unsigned held[HELD > 0 ? HELD : 1];
#pragma unroll
  for (int n = 0; n < HELD; n++) held[n] = rank(n);
  auto rankOf = [&](int n) { return HELD > 0 ? held[HELD > 0 ? n : 0] : rank(n); };
  int steps = HELD > 0 ? HELD : (own + 31) / 32;
  auto reach = [&](unsigned least) {
    int reached = 0;
#pragma unroll
    for (int n = 0; n < steps; n++) reached += rankOf(n) >= least;
    return warpSum(reached);
  };

  // The rank of the last that is chosen, bit by bit: the largest that `wanted`
  // blocks reach.
  unsigned least = 0;
  if (own - forced > wanted) {
    for (int bit = 30; bit >= 0; bit--) {
      unsigned candidate = least | 1u << bit;
      int reached = reach(candidate);
      if (reached >= wanted) least = candidate;
      if (reached == wanted) break;
    }
  }
  // Of those that equal the least, the first ones.
  int room = wanted - min(wanted, reach(least + 1));
  int place = 0;
  unsigned before = (1u << lane) - 1;
#pragma unroll
  for (int n = 0; n < steps; n++) {
    int j = 32 * n + lane;
    unsigned bits = rankOf(n);
    unsigned equals = __ballot_sync(0xffffffff, bits > 0 && bits == least);
    bool isFirst = __popc(equals & before) < room;
    bool isChosen = bits > least || (bits > 0 && bits == least && isFirst) ||
                    (j < own && isForced(j));
    room -= min(room, __popc(equals));
    unsigned chosen = __ballot_sync(0xffffffff, isChosen);
    if (isChosen) list[place + __popc(chosen & before)] = j;
    place += __popc(chosen);
  }
}
