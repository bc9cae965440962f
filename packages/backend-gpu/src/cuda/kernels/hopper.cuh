// Dense attention in 16-bit types on Hopper: products are of warpgroups, which
// read the second operand, and the first where it is a tile, from shared memory
// as they are. One warpgroup copies; the others compute, 64 rows each.
//
// A tile lies there in chunks of 64 columns. A row of a chunk is 128 bytes,
// whose 16-byte pieces change places by XOR with the row's number: the layout
// of 128-byte swizzle, in which tiles start on multiples of 1024 bytes. The
// same tile serves as rows of k and, transposed, as rows of n.
#pragma once
#include "flash.cuh"
#include "hopper-ptx.cuh"

/** Threads of a warpgroup; warpgroups that compute. */
#define GROUP 128
#define GROUPS (ROWS / 64)
static_assert(THREADS == GROUP * (GROUPS + 1), "one more copies");

/** Registers of a thread that computes, and of one that copies. */
#define COMPUTING (GROUPS == 2 ? 232 : GROUPS == 3 ? 160 : 112)
#define COPYING (GROUPS == 2 ? 40 : 32)
static_assert(GROUPS * COMPUTING + COPYING <=
                  (GROUPS + 1) * (65536 / THREADS / 8 * 8),
              "a block has what all its threads started with");

/** The thread's warpgroup, as what the compiler knows to be a warp's. */
__device__ inline int warpgroup() {
  return __shfl_sync(0xffffffff, threadIdx.x / GROUP, 0);
}

/** Elements of a tile of so many rows and columns, in whole chunks. */
__device__ constexpr int tileSize(int rows, int columns) {
  return rows * ((columns + 63) / 64 * 64);
}

/** The columns of a tile of COUNT rows, from the first one on. */
template <int COUNT> __device__ inline MatrixPlace placeAt(unsigned piece) {
  // From chunk to chunk, which only transposed ones are read over at once; from
  // eight rows to the next.
  constexpr MatrixPlace STRIDES =
      (MatrixPlace)(COUNT * 128 / 16) << 16 | (MatrixPlace)(1024 / 16) << 32;
  return (MatrixPlace)(piece & 0x3fff) | STRIDES | 1ull << 62;
}
template <int COUNT> __device__ inline MatrixPlace placeOf(const T *tile) {
  return placeAt<COUNT>((unsigned)__cvta_generic_to_shared(tile) / 16);
}
/** What is added to that for columns 16 k; for rows 16 k. */
template <int COUNT> __device__ constexpr int columnStep(int k) {
  return k / 4 * (COUNT * 128 / 16) + k % 4 * 2;
}
__device__ constexpr int rowStep(int k) { return k * (16 * 128 / 16); }

template <bool... TRANSPOSED, int COLUMNS, typename A>
__device__ inline void multiply(float (&d)[COLUMNS][4], const A &a,
                                MatrixPlace b, int more, bf16) {
  Wgmma<8 * COLUMNS>::template bfloat<TRANSPOSED...>(d, a, b, more);
}
template <bool... TRANSPOSED, int COLUMNS, typename A>
__device__ inline void multiply(float (&d)[COLUMNS][4], const A &a,
                                MatrixPlace b, int more, f16) {
  Wgmma<8 * COLUMNS>::template half<TRANSPOSED...>(d, a, b, more);
}

/** d = a b^T of tiles of A_ROWS and B_ROWS rows, over DEPTH columns. */
template <int DEPTH, int A_ROWS, int B_ROWS, int COLUMNS>
__device__ inline void multiplyTiles(float (&d)[COLUMNS][4], MatrixPlace a,
                                     MatrixPlace b) {
  forget(d);
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    multiply<false>(d, a + columnStep<A_ROWS>(k), b + columnStep<B_ROWS>(k),
                    k > 0, T());
  }
}

/** The same of a warp's 16 rows of a, which are in registers. */
template <int DEPTH, int B_ROWS, int COLUMNS>
__device__ inline void multiplyHeld(float (&d)[COLUMNS][4],
                                    const unsigned (&a)[DEPTH / 16][4],
                                    MatrixPlace b) {
  forget(d);
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    multiply<false>(d, a[k], b + columnStep<B_ROWS>(k), k > 0, T());
  }
}

/** Rows `first .. first + 16` of a tile of A_ROWS rows to registers. */
template <int A_ROWS, int DEPTH>
__device__ inline void loadRows(unsigned (&a)[DEPTH / 16][4], const T *tile,
                                int first) {
  int lane = threadIdx.x % 32;
  int row = first + lane % 16;
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    const T *chunk = tile + k / 4 * A_ROWS * 64 + row * 64;
    loadMatrices<false>(a[k], chunk + ((k % 4 * 2 + lane / 16) ^ row % 8) * 8);
  }
}

/** d += a b of a tile of A_ROWS rows, of DEPTH rows of b. */
template <int DEPTH, int A_ROWS, int COLUMNS>
__device__ inline void addProduct(float (&d)[COLUMNS][4], MatrixPlace a,
                                  MatrixPlace b) {
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    multiply<true>(d, a + columnStep<A_ROWS>(k), b + rowStep(k), 1, T());
  }
}

/** d = a^T b of 64 columns of a, over DEPTH rows of both. */
template <int DEPTH, int COLUMNS>
__device__ inline void multiplyTransposed(float (&d)[COLUMNS][4], MatrixPlace a,
                                          MatrixPlace b) {
  forget(d);
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    multiply<true, true>(d, a + rowStep(k), b + rowStep(k), k > 0, T());
  }
}

/** d = p b + (more ? d : 0), of rows 16 DEPTH of b. */
template <int DEPTH, int COLUMNS>
__device__ inline void multiplyWeights(float (&d)[COLUMNS][4],
                                       const unsigned (&p)[DEPTH][4],
                                       MatrixPlace b, int more) {
#pragma unroll
  for (int k = 0; k < DEPTH; k++) {
    multiply<true>(d, p[k], b + rowStep(k), k > 0 ? 1 : more, T());
  }
}

/** The columns of accumulators as a first operand. */
template <int DEPTH, int COLUMNS>
__device__ inline void operandsOf(unsigned (&p)[DEPTH][4],
                                  const float (&x)[COLUMNS][4]) {
#pragma unroll
  for (int k = 0; k < DEPTH; k++) operandOf(p[k], x, k);
}

/** The widest copy from a column on: within a chunk, of 2^n pieces. */
__device__ constexpr int copyWidth(int first, int columns) {
  int most = 64 - first % 64 < columns ? 64 - first % 64 : columns;
  return most >= 64 ? 64 : most >= 32 ? 32 : most >= 16 ? 16 : 8;
}

/** Keys that follow one another: the first `count` are there. */
struct KeyRows {
  int count;

  __device__ bool has(int i) const { return i < count; }
  __device__ int at(int i) const { return i; }
  template <int STEP, int COUNT> __device__ static constexpr bool isEven() {
    return true;
  }
  template <int STEP, int COUNT> __device__ int step(int) const { return STEP; }
};

/**
 * Rows of queries: UNIT heads of one, then those of the next. Row 0 is row
 * `first` of those of `query`; the first `count` are there.
 */
struct QueryRows {
  int query, heads, head0;
  int first, count;

  __device__ bool has(int i) const { return i < count; }
  /** Its number among all rows. */
  __device__ int at(int i) const {
    int rho = first + i;
    return (query + rho / UNIT) * heads + head0 + rho % UNIT;
  }
  __device__ int numberOf(int i) const { return has(i) ? at(i) : -1; }
  /** Whether a tile of COUNT rows knows where its queries begin. */
  template <int STEP, int COUNT> __device__ static constexpr bool isEven() {
    bool isWhole = COUNT % UNIT == 0 || UNIT % COUNT == 0;
    return STEP % UNIT == 0 || (UNIT % STEP == 0 && isWhole);
  }
  /** From row i to row i + STEP, and for STEP rows from i on the same. */
  template <int STEP, int COUNT> __device__ int step(int i) const {
    if (STEP % UNIT == 0) return STEP / UNIT * heads;
    bool isNext = COUNT % UNIT == 0 && (i + STEP) % UNIT == 0;
    return isNext ? heads - UNIT + STEP : STEP;
  }
};

/**
 * Starts to copy COLUMNS elements of COUNT rows to columns FIRST .. of a tile:
 * of row i those behind `from + rows.at(i) stride`, zeros where there is none.
 * BY threads share the work. Each follows its rows by steps that are the same
 * for all: what it computes of a row otherwise takes longer than the copy.
 */
template <int COUNT, int FIRST, int COLUMNS, int BY = GROUP, typename Rows>
__device__ inline void copyChunks(T *tile, const T *from, int stride,
                                  const Rows &rows) {
  constexpr int TAKEN = copyWidth(FIRST, COLUMNS);
  // Chunks that a thread copies of a row.
  constexpr int CHUNKS = TAKEN == 64 ? COLUMNS / 64 : 1;
  constexpr int PIECES = TAKEN / 8;
  constexpr int STEP = BY / PIECES;
  // What is made of it is made anew: warps that copy have few registers.
  unsigned thread = threadIdx.x % BY;
  renew(thread);
  int piece = thread % PIECES;
  int row = thread / PIECES;
  // Rows that are a multiple of 8 apart have their pieces in the same places.
  static_assert(STEP % 8 == 0, "so are a thread's rows");
  T *to = tile + FIRST / 64 * COUNT * 64 + row * 64 +
          ((FIRST % 64 / 8 + piece) ^ row % 8) * 8;
  const T *at = from + (i64)rows.at(row) * stride + piece * 8;
#pragma unroll
  for (int i = 0; i < COUNT; i += STEP) {
    if (COUNT % STEP > 0 && i + row >= COUNT) break;
    bool isThere = rows.has(i + row);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      cpAsync16(to + c * COUNT * 64 + i * 64, at + c * 64, isThere);
    }
    if constexpr (Rows::template isEven<STEP, COUNT>()) {
      at += rows.template step<STEP, COUNT>(i) * stride;
    } else {
      at = from + (i64)rows.at(i + STEP + row) * stride + piece * 8;
    }
  }
  if constexpr (COLUMNS > TAKEN * CHUNKS) {
    copyChunks<COUNT, FIRST + TAKEN * CHUNKS, COLUMNS - TAKEN * CHUNKS, BY>(
        tile, from + TAKEN * CHUNKS, stride, rows);
  }
}

/** The same of consecutive rows of `from`, from `base` on; zeros from `end` on. */
template <int COUNT, int FIRST, int COLUMNS, int BY = GROUP>
__device__ inline void copyTile(T *tile, const T *from, int stride, int base,
                                int end) {
  copyChunks<COUNT, FIRST, COLUMNS, BY>(tile, from + (i64)base * stride, stride,
                                        KeyRows{end - base});
}

/**
 * Columns of COUNT rows from FIRST on are 0, as products take 16 at a time: no
 * copy writes there. The BY threads that copy do it, before they announce any.
 */
template <int COUNT, int FIRST, int BY = GROUP>
__device__ inline void clearBehind(T *tile) {
  if constexpr (FIRST % 16 > 0) {
    static_assert(FIRST % 16 == 8, "one piece a row");
    for (int i = threadIdx.x % BY; i < COUNT; i += BY) {
      T *row = tile + FIRST / 64 * COUNT * 64 + i * 64;
      *(int4 *)(row + (FIRST % 64 / 8 ^ i % 8) * 8) = make_int4(0, 0, 0, 0);
    }
  }
}

/** The same of whole tiles, as boxes of COUNT rows that the card copies. */
template <int COUNT, int FIRST, int COLUMNS>
__device__ inline void copyBoxes(T *tile, const Boxes &boxes, int head, int row,
                                 Mbarrier *full) {
#pragma unroll
  for (int c = 0; c < COLUMNS; c += 64) {
    copyBox(tile + (FIRST + c) * COUNT, boxes, c, head, row, full);
  }
}

/** A place in a ring of tiles, and the parity of its phase. */
template <int PLACES> struct TurnOf {
  int stage;
  unsigned parity;

  __device__ void next() {
    if (++stage < PLACES) return;
    stage = 0;
    parity ^= 1;
  }
  /** The place so many tiles further, PLACES at most. */
  __device__ void skip(int tiles) {
    stage += tiles;
    if (stage < PLACES) return;
    stage -= PLACES;
    parity ^= 1;
  }
};
typedef TurnOf<STAGES> Turn;

/** A warp's arrival, of what all its lanes have done. */
__device__ inline void arriveWarp(Mbarrier *barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(barrier);
}

/**
 * The copying side: a tile is announced once the next one is on its way, or
 * where there is no place for that yet.
 */
struct Copies {
  Mbarrier *due;

  template <int PENDING> __device__ void announce() {
    if (!due) return;
    cpAsyncWait<PENDING>();
    fenceProducts();
    arriveWarp(due);
    due = 0;
  }
  /** Waits until a place is free. */
  __device__ void claim(Mbarrier *free, unsigned parity) {
    if (!__all_sync(0xffffffff, hasEnded(free, parity ^ 1))) {
      announce<0>();
      await(free, parity ^ 1);
    }
  }
  /** What has been started since is the tile behind that barrier. */
  __device__ void commit(Mbarrier *full) {
    cpAsyncCommit();
    announce<1>();
    due = full;
  }
  /** A tile of so many elements, in boxes that `copy` asks for. */
  template <typename Copy>
  __device__ void take(Mbarrier *full, int elements, Copy copy) {
    if (threadIdx.x % GROUP == 0) {
      arriveExpecting(full, elements * sizeof(T));
      copy();
    } else if (threadIdx.x % 32 == 0) {
      arrive(full);
    }
    __syncwarp();
    announce<0>();
  }
};

/**
 * The work of the block of threads in a round, where the grid's numbers fall in
 * size: every other round from the other end, so that shares are alike.
 */
__device__ inline int turnOf(int round) {
  int from = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  return round * gridDim.x + from;
}

/**
 * A tile of ROWS rows of a unit and what they walk over. Tiles are numbered
 * with the longest walks first.
 */
struct DenseTile {
  Sequence s;
  int head0;
  /** Its first row, and keys `first .. end`. */
  int row0, first, end;

  /** False where there are no such rows. */
  __device__ bool open(const Call &u, int number, int tiles, int sequences) {
    int units = u.heads / UNIT;
    int rest = number % (units * sequences);
    s = u.sequences[rest / units];
    head0 = rest % units * UNIT;
    row0 = (tiles - 1 - number / (units * sequences)) * ROWS;
    int firstQuery = row0 / UNIT;
    if (firstQuery >= s.queryCount) return false;
    int lastQuery = min((row0 + ROWS - 1) / UNIT, s.queryCount - 1);
    first = firstSeen(u, past() + firstQuery);
    end = lastSeen(u, past() + lastQuery) + 1;
    return true;
  }
  __device__ int past() const { return s.keyCount - s.queryCount; }
  __device__ QueryRows rows(const Call &u) const {
    return {s.queryStart, u.heads, head0, row0, s.queryCount * UNIT - row0};
  }
};

/** The keys that a lane's two rows see. */
struct LaneRows {
  int first[2], count[2];

  __device__ void set(const Call &u, const DenseTile &tile, int row) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int t = tile.past() + (tile.row0 + row + 8 * half) / UNIT;
      first[half] = firstSeen(u, t);
      count[half] = max(lastSeen(u, t) + 1 - first[half], 0);
    }
  }
  /** x = low where a row does not see the key of a column. */
  template <int COLUMNS>
  __device__ void hide(float (&x)[COLUMNS][4], float low, int base) const {
    int column = base + laneColumn();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int from = column - first[half];
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          unsigned at = from + 8 * n + e;
          if (at >= (unsigned)count[half]) x[n][2 * half + e] = low;
        }
      }
    }
  }
};

/** Keys that all of a warpgroup's 64 rows see. */
struct Whole {
  int first, end;

  __device__ void set(const Call &u, const DenseTile &tile, int row) {
    int firstQuery = (tile.row0 + row) / UNIT;
    int lastQuery = min((tile.row0 + row + 63) / UNIT, tile.s.queryCount - 1);
    first = firstSeen(u, tile.past() + lastQuery);
    end = lastSeen(u, tile.past() + firstQuery) + 1;
  }
  __device__ bool has(int base) const {
    return base >= first && base + N <= end;
  }
};

/**
 * Columns 8 n and 8 n + 8 of a lane's row of accumulators: lanes change halves,
 * so that each has four neighbours, and eight rows whole sectors. `emit(column,
 * low, high)` takes them as bits; all lanes must be there.
 */
template <int COLUMNS, typename Emit>
__device__ inline void emitRow(const float (&x)[COLUMNS][4], int half,
                               float factor, Emit emit) {
  bool isOdd = threadIdx.x & 1;
  int column = laneColumn() / 4 * 4 + (isOdd ? 8 : 0);
#pragma unroll
  for (int n = 0; n < COLUMNS; n += 2) {
    unsigned first = pair(x[n][2 * half] * factor,
                          x[n][2 * half + 1] * factor, T());
    unsigned second = pair(x[n + 1][2 * half] * factor,
                           x[n + 1][2 * half + 1] * factor, T());
    unsigned given = isOdd ? first : second;
    unsigned taken = __shfl_xor_sync(0xffffffff, given, 1);
    emit(8 * n + column, isOdd ? taken : first, isOdd ? second : taken);
  }
}
__device__ inline void storeFour(T *at, unsigned low, unsigned high) {
  *(uint2 *)at = make_uint2(low, high);
}

/** A row of sums, times a factor, as a query's gradient, of columns `first ..`. */
template <int COLUMNS>
__device__ inline void emitGradient(const float (&x)[COLUMNS][4], int half,
                                    float factor, const QueryGradients &d,
                                    i64 row, int first) {
  emitRow(x, half, factor, [&](int c, unsigned low, unsigned high) {
    c += first;
    if (row < 0 || c >= WIDTH + ROPE) return;
    storeFour(gradientAt(d, row, c), low, high);
  });
}

/**
 * A statistic of each of a lane's columns, where those are rows of q: scores
 * transposed. Two at a time, as reading shared memory is the limit.
 */
template <int COLUMNS>
__device__ inline void loadColumns(float2 (&x)[COLUMNS], const float *from) {
  from += laneColumn();
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) x[n] = *(const float2 *)(from + 8 * n);
}

/** Scores transposed to probabilities, of their columns' LSE. */
__device__ inline void weighColumn(float (&p)[4], float2 lse, float scale) {
  float log[2] = {lse.x * LOG2_E, lse.y * LOG2_E};
#pragma unroll
  for (int e = 0; e < 4; e++) p[e] = exp2Fast(p[e] * scale - log[e % 2]);
}
template <int COLUMNS>
__device__ inline void weighColumns(float (&p)[COLUMNS][4],
                                    const float2 (&lse)[COLUMNS], float scale) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) weighColumn(p[n], lse[n], scale);
}

#if VIEW == MASKED
/**
 * The masks of a leader's list: bit i of byte n says whether it has keys 16 i ..
 * of tile n of 128.
 */
__device__ inline const unsigned char *masksOf(const Call &u, const Sequence &s,
                                               int leader, int head0) {
  return (const unsigned char *)listOf(u, s, leader, head0);
}
#endif

/** Rows that any of a warpgroup's 64 keys sees, and that all see. */
struct SeenRows {
  int someFirst, someEnd, allFirst, allEnd;

  /** Of keys from `key` on; `keys` knows which rows see a key. */
  template <typename Keys>
  __device__ static SeenRows of(const Call &u, const Keys &keys, int key) {
    SeenRows seen;
    int first, last;
    keys.look(u, key, seen.someFirst, first);
    keys.look(u, key + 63, seen.allFirst, last);
    seen.allEnd = seen.someFirst + first;
    seen.someEnd = seen.allFirst + last;
    return seen;
  }
};
