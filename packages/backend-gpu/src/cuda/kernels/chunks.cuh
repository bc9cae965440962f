// Selected attention by blocks: leaders in chunks, and of each chunk its items.
// Of forward-items.cu and flash-forward-blocks.cu.
#pragma once
#include "common.cuh"

/** How leaders are cut: chunks of a unit of heads, one behind another. */
struct Cut {
  // Units of a sequence, chunks of a unit, leaders of a chunk.
  int units, perUnit, most;
};

/** Leaders `first ..` of a unit of a sequence. */
struct Chunk {
  int sequence, unit, first, count;

  __device__ static Chunk of(int number, const Sequence *sequences,
                             const Cut &cut, int sharing) {
    int row = number / cut.perUnit;
    Sequence s = sequences[row / cut.units];
    int past = s.keyCount - s.queryCount;
    int leaders = s.queryCount == 0
                      ? 0
                      : (s.keyCount - 1) / sharing - past / sharing + 1;
    int first = number % cut.perUnit * cut.most;
    return {row / cut.units, row % cut.units, first,
            max(0, min(cut.most, leaders - first))};
  }
};

/** The heads of a leader's queries: one behind another, of those that are here. */
struct ListRows {
  // Among all queries, and by position.
  int firstQuery, position;
  int count;

  /** @param unitHeads heads that share a list and its keys. */
  __device__ static ListRows of(const Sequence &s, int leader, int sharing,
                                int unitHeads) {
    int past = s.keyCount - s.queryCount;
    int leaderAt = (past / sharing + leader) * sharing;
    int first = max(leaderAt, past);
    int end = min(leaderAt + sharing, s.keyCount);
    return {s.queryStart + first - past, first, (end - first) * unitHeads};
  }
};

/**
 * Whether a list begins with the first block and ends with that of its own queries
 * and the one before it, as ranking makes them: the three are walked over
 * together then, and leave one part, at the last place.
 */
__device__ inline bool hasOwnBlock(const int *list, int count, int position,
                                   int sharing) {
  int own = position / BLOCK;
  return BLOCK % sharing == 0 && count > 2 && own > 1 && list[0] == 0 &&
         list[count - 2] == own - 1 && list[count - 1] == own;
}
/** Whether that is the place of one of the three. */
__device__ inline bool isOwnPlace(int place, int count) {
  return place == 0 || place >= count - 2;
}

/**
 * Some lists that have a block of keys, `isOwn`: as their own one, with the first
 * block and the one before it. `first` counts a chunk's entries.
 */
struct Item {
  int chunk, first;
  unsigned block : 23, isOwn : 1, count : 8;
};

/** The items of those chunks that are walked over in a launch: a range. */
struct Items {
  Item *items;
  // Of each chunk the lists that have a block: leader << 16 | place.
  unsigned *entries;
  // Of each range how many items there are, and how many more have been taken.
  int2 *counts;
  // Chunks of a range, and room for items of each.
  int range, chunks, room, unused;

  __device__ int firstChunk() const { return range * chunks; }
  __device__ Item *of(int range) const {
    return items + (i64)range * chunks * room;
  }
  /** Of so many items; behind the last one there are some of no lists. */
  __device__ Item at(int number, int count) const {
    Item none = {};
    return number < count ? of(range)[number] : none;
  }
};
