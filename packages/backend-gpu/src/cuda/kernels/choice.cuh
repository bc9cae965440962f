// What a list's blocks are ranked by, and how those that are chosen are written;
// the same where a warp has a list and where a block of threads has.
#pragma once
#include "ranks.cuh"

struct Choice {
  const Sequence *sequences;
  int blockSize, sharing;
  int count, initial, local;
};

/** The least of all NaNs, by bits without the sign. */
#define LEAST_NAN 0x7f800001u
/** Above every other rank. */
#define FORCED 0x7fffffffu

/** The list of the leader at a place of the rows that there are, and of a group. */
struct List {
  // The leader's position, and the number of blocks up to its own; of none 0.
  int t, own;
  // Of its ranks, where those are only of some leaders or of all.
  i64 row;
  int *chosen;
  // The list as it was chosen before, where the leader is before the queries.
  const int *known;

  __device__ List(const Ranks &ranks, const Choice &u, const int *previous,
                  int *indices, i64 place, int group)
      : own(0) {
    if (place >= ranks.count) return;
    int leader = ranks.first + place;
    Sequence s = u.sequences[blockIdx.z];
    int past = s.keyCount - s.queryCount;
    t = (past / u.sharing + leader) * u.sharing;
    if (t >= s.keyCount || s.queryCount == 0) return;
    own = t / u.blockSize + 1;
    row = ranks.rowOf(s, leader) * ranks.groups + group;
    i64 list = (i64)(s.leaderStart + leader) * ranks.groups + group;
    chosen = indices + list * u.count;
    known = t < past
                ? previous + (blockIdx.z * ranks.groups + group) * u.count
                : 0;
  }

  /**
   * Bits of what is not negative have the order of the numbers, and all NaNs
   * are alike. Blocks that are forced are before all others; 0 is none.
   */
  __device__ unsigned rank(const Choice &u, int j, unsigned bits) const {
    bool isForced = j < u.initial || j + u.local >= own;
    unsigned known = isForced ? FORCED : min(bits & 0x7fffffff, LEAST_NAN) + 1;
    return j < own ? known : 0;
  }
};

/** Writes a warp's share of the list, 32 blocks after 32. */
struct Writer {
  int *chosen;
  // The rank of the last that is chosen.
  unsigned least;
  // The next place, and how many of that rank may follow.
  int place, room;

  /** Block j, a lane each: those above the least, and the first that equal it. */
  __device__ void write(int j, unsigned rank) {
    unsigned before = (1u << threadIdx.x % 32) - 1;
    bool reaches = rank > 0 && rank >= least;
    if (!__any_sync(0xffffffff, reaches)) return;
    bool equals = rank == least;
    unsigned alike = __ballot_sync(0xffffffff, reaches && equals);
    bool isFirst = __popc(alike & before) < room;
    bool isChosen = reaches && (!equals || isFirst);
    room -= min(room, __popc(alike));
    unsigned all = __ballot_sync(0xffffffff, isChosen);
    if (isChosen) chosen[place + __popc(all & before)] = j;
    place += __popc(all);
  }
};
