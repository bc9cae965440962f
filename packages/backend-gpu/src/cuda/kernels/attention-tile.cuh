// What the passes of attention share. A tile has 16 WARPS rows (a row is a
// query's head), or keys in the pass over keys, against N of the other side at
// a time. Nothing of the size rows times keys is ever stored.
//
// VIEW says which keys a query sees: of attention the last `window` up to its
// own position, of compressed attention the blocks that are whole, of selected
// attention those of its leader's list. MASKED is SELECTED as a walk over all
// keys up to the query's own: in place of the lists are their masks, of
// `listMasks`.
#pragma once
#include "tile.cuh"

#define ATTENTION 0
#define COMPRESSED 1
#define SELECTED 2
#define MASKED 3

#ifndef ROWS
#define ROWS (16 * WARPS)
#endif
#define THREADS (32 * WARPS)

// SPLIT: a tile's walk is shared out over several blocks of threads, whose
// results stay in f32 until `joinParts` has joined them.
#ifndef SPLIT
#define SPLIT 0
#endif
#if SPLIT
typedef f32 Result;
#else
typedef T Result;
#endif

// PLUS: the gradient of q has that of its other uses added to it.
#ifndef PLUS
#define PLUS 0
#endif

struct Call {
  const T *q, *k, *v, *qRope, *kRope;
  const Sequence *sequences;
  // Selected attention: lists `[L, lists, count]`, or words of their masks.
  const int *indices;
  // H, GK, and the heads that share keys and lists.
  int heads, keyHeads, unitHeads;
  int width, ropeWidth, valueWidth;
  // Rows may be read 16 bytes at a time.
  int aligned;
  float scale;
  int window;
  int length, stride;
  int blockSize, sharing, lists, count;
};

/** Where gradients of queries go, and of q's shape what is added to its own. */
struct QueryGradients {
  T *q, *qRope;
  const T *plus;
};

/** Columns of a key with its rotary ones, of a value: whole tiles of 16. */
__device__ inline int keyColumns(const Call &u) {
  return (u.width + u.ropeWidth + 15) / 16 * 16;
}
__device__ inline int valueColumns(const Call &u) {
  return (u.valueWidth + 15) / 16 * 16;
}

/** First and last key that the query at position t sees. */
__device__ inline int firstSeen(const Call &u, int t) {
  return VIEW == ATTENTION ? max(0, t - u.window + 1) : 0;
}
__device__ inline int lastSeen(const Call &u, int t) {
  return VIEW == COMPRESSED ? blocksOf(t + 1, u.length, u.stride) - 1 : t;
}

/** Where key 0 of a sequence lies, and how many keys it has. */
__device__ inline int keyStart(const Sequence &s) {
  return VIEW == COMPRESSED ? s.blockStart : s.keyStart;
}
__device__ inline int keyCount(const Call &u, const Sequence &s) {
  return VIEW == COMPRESSED ? blocksOf(s.keyCount, u.length, u.stride)
                            : s.keyCount;
}

__device__ inline const int *listOf(const Call &u, const Sequence &s, int leader,
                                    int head0) {
  int list = head0 / (u.heads / u.lists);
  return u.indices + ((i64)(s.leaderStart + leader) * u.lists + list) * u.count;
}

/** Rows of a tile: their number q H + head, -1 for none, and what they see. */
template <int COUNT> struct RowTable {
  int index[COUNT], first[COUNT], last[COUNT];

  __device__ void set(const Call &u, const Sequence &s, int i, bool isRow,
                      int query, int head) {
    int t = s.keyCount - s.queryCount + query;
    index[i] = isRow ? (s.queryStart + query) * u.heads + head : -1;
    first[i] = isRow ? firstSeen(u, t) : 0;
    last[i] = isRow ? lastSeen(u, t) : -1;
  }
};

/** Keys of a tile: their positions and rows, -1 for none. */
template <int COUNT> struct KeyTable {
  int position[COUNT], row[COUNT];

  __device__ void set(const Sequence &s, int i, int at) {
    position[i] = at;
    row[i] = at < 0 ? -1 : keyStart(s) + at;
  }
};

template <int R, int K>
__device__ inline bool sees(const RowTable<R> &rows, int row,
                            const KeyTable<K> &keys, int key) {
  int at = keys.position[key];
  return at >= rows.first[row] && at <= rows.last[row];
}

__device__ inline Columns queries(const Call &u) {
  return {u.q, u.width, u.width};
}
__device__ inline Columns rotaryQueries(const Call &u) {
  return {u.qRope, u.ropeWidth, u.ropeWidth};
}
__device__ inline Columns keys(const Call &u, int head) {
  return {u.k + (i64)head * u.width, (i64)u.keyHeads * u.width, u.width};
}
__device__ inline Columns rotaryKeys(const Call &u) {
  return {u.kRope, u.ropeWidth, u.ropeWidth};
}
/** Columns `first .. first + width` of the values. */
__device__ inline Columns values(const Call &u, int head, int first, int width) {
  return {u.v + (i64)head * u.valueWidth + first, (i64)u.keyHeads * u.valueWidth,
          min(width, u.valueWidth - first)};
}
__device__ inline Columns none() { return {0, 0, 0}; }

/** What a tile of rows walks over: slots `first .. end` of keys. */
struct Walk {
  int first, end;
  // Selected attention: the leader's list, and the sequence's keys.
  const int *list;
  int keys;
};

/** One of the blocks of threads that share out a tile's walk. */
struct Split {
  int number, count;

  /** `count` numbers are the next ones of the grid's first axis. */
  __device__ static Split of(int count) {
    return SPLIT ? Split{(int)blockIdx.x % count, count} : Split{0, 1};
  }

  /** Where its results of a row lie: the parts of a row one behind another. */
  __device__ i64 rowOf(int index) const {
    return SPLIT ? (i64)index * count + number : index;
  }

  /**
   * Takes its keys of a walk, whole tiles and at least two of them. False where
   * none are left: the LSE of its rows is -inf then, and o is not written.
   */
  __device__ bool take(Walk &walk, const RowTable<ROWS> &rows,
                       float *lse) const {
    if (!SPLIT) return true;
    int tiles = (walk.end - walk.first + N - 1) / N;
    int keys = max(2, (tiles + count - 1) / count) * N;
    walk.first += number * keys;
    walk.end = min(walk.end, walk.first + keys);
    if (walk.first < walk.end) return true;
    // The thread's own row: it has filled the table.
    int index = threadIdx.x < ROWS ? rows.index[threadIdx.x] : -1;
    if (index >= 0) lse[rowOf(index)] = -INFINITE;
    return false;
  }
};

/** The key position of a slot, -1 for none. */
__device__ inline int keyAt(const Call &u, const Sequence &s, const Walk &walk,
                            int slot) {
  if (slot >= walk.end) return -1;
  if (VIEW != SELECTED) return slot;
  int block = walk.list[slot / u.blockSize];
  int position = block * u.blockSize + slot % u.blockSize;
  return block >= 0 && position < walk.keys ? position : -1;
}

/**
 * Fills the table of the rows of tile `tile` of the unit that starts at head0,
 * and says what they walk over. False where the tile has no rows.
 */
__device__ inline bool openRows(const Call &u, const Sequence &s, int tile,
                                int head0, RowTable<ROWS> &rows, Walk &walk) {
  int past = s.keyCount - s.queryCount;
  if (VIEW == SELECTED) {
    int tiles = (u.sharing * u.unitHeads + ROWS - 1) / ROWS;
    int leader = tile / tiles;
    // Those of its queries that are here: in decoding often one of them.
    int leaderAt = (past / u.sharing + leader) * u.sharing;
    int firstQuery = max(leaderAt - past, 0);
    int end = min(leaderAt + u.sharing, s.keyCount) - past;
    int count = (end - firstQuery) * u.unitHeads;
    int first = tile % tiles * ROWS;
    if (first >= count) return false;
    if (threadIdx.x < ROWS) {
      int rho = first + threadIdx.x;
      rows.set(u, s, threadIdx.x, rho < count, firstQuery + rho / u.unitHeads,
               head0 + rho % u.unitHeads);
    }
    walk = {0, u.count * u.blockSize, listOf(u, s, leader, head0),
            s.keyCount};
    return true;
  }
  int firstQuery = tile * ROWS / u.unitHeads;
  if (firstQuery >= s.queryCount) return false;
  if (threadIdx.x < ROWS) {
    int rho = tile * ROWS + threadIdx.x;
    int query = rho / u.unitHeads;
    rows.set(u, s, threadIdx.x, query < s.queryCount, query,
             head0 + rho % u.unitHeads);
  }
  int lastQuery = min((tile * ROWS + ROWS - 1) / u.unitHeads, s.queryCount - 1);
  walk = {firstSeen(u, past + firstQuery), lastSeen(u, past + lastQuery) + 1, 0, 0};
  return true;
}

/** dS of a row and a key without its scale, from the row's (lse, dO . o). */
__device__ inline float scoreGradient(float p, float dP, float2 statistics) {
  return p * (dP - statistics.y);
}
__device__ inline float probability(float score, float scale, float2 statistics) {
  return expf(score * scale - statistics.x);
}
