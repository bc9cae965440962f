// The tiles of attention in 16-bit types whose widths the compiler knows. They
// come from device memory by cp.async while the tiles before them are computed
// with, and lie in shared memory without padding. What the softmax makes of
// scores stays in registers: the accumulators of two products side by side are
// a first operand of the next product.
//
// A block of threads has ROWS rows against N keys at a time. Its warps share
// out the rows, 16 ROW_TILES each; where there are fewer rows than that, they
// share out the keys as well, each with a softmax of its own.
#pragma once
#include "attention-tile.cuh"

/**
 * Columns of the tiles of keys and values: ldmatrix takes 16 at a time. Those
 * behind a key's are 0, those behind a latent value's its key's next ones.
 */
constexpr int KEY = (WIDTH + ROPE + 15) / 16 * 16;
constexpr int VALUES = (VALUE + 15) / 16 * 16;
/** Warps that the rows are for at most. */
#ifndef ROW_SHARES
#define ROW_SHARES WARPS
#endif
constexpr int ROW_WARPS = ROWS / 16 < ROW_SHARES ? ROWS / 16 : ROW_SHARES;
constexpr int ROW_TILES = ROWS / 16 / ROW_WARPS;
constexpr int KEY_WARPS = WARPS / ROW_WARPS;
/** Keys of a tile that a warp computes with. */
constexpr int SPAN = N / KEY_WARPS;
/** Where each warp has its own keys it loads them alone, and waits for none. */
constexpr int LOADERS = ROW_WARPS == 1 ? 32 : THREADS;
constexpr int LOADED = N / (THREADS / LOADERS);

constexpr float LOG2_E = 1.4426950408889634f;

/**
 * A tile of rows of W elements. ldmatrix reads 16-byte pieces of eight rows at
 * a time: those must lie in different groups of 4 banks, so the pieces of a
 * row change places by the row's number.
 */
template <int W> struct Tile {
  static_assert(W % 16 == 0, "whole pieces for ldmatrix");
  static constexpr int PIECES = W / 8;
  static constexpr int SPREAD =
      PIECES % 8 == 0 ? 8 : PIECES % 4 == 0 ? 4 : 2;

  __device__ static int turn(int row) { return row / (8 / SPREAD) % SPREAD; }
  __device__ static int at(int row, int piece) {
    return row * W + (piece ^ turn(row)) * 8;
  }
};

/** Dynamic shared memory from where tiles of 128-byte swizzle may start. */
__device__ inline T *tilesIn(void *memory) {
  unsigned address = (unsigned)__cvta_generic_to_shared(memory);
  return (T *)((char *)memory + (-address & 1023));
}

/** A lane's row of a tile, for ldmatrix: what depends on the lane, once. */
template <int W> struct Lane {
  const T *row;
  int turn;

  /** `later`: the lane wants the second of two pieces. */
  __device__ Lane(const T *tile, int i, int later)
      : row(tile + i * W), turn(Tile<W>::turn(i) ^ later) {}

  /** Four matrices from row `down`, of 8 or more, and columns 16 `pair`. */
  template <bool TRANSPOSED>
  __device__ void load(unsigned (&x)[4], int down, int pair) const {
    constexpr int SPREAD = Tile<W>::SPREAD;
    int piece = 2 * pair;
    int place = piece / SPREAD * SPREAD + (piece % SPREAD ^ turn);
    loadMatrices<TRANSPOSED>(x, row + down * W + place * 8);
  }
};

/** Rows as the first operand; as the second; as the second, transposed. */
template <int W> __device__ inline Lane<W> firstOperand(const T *tile) {
  int lane = threadIdx.x % 32;
  return Lane<W>(tile, lane % 16, lane / 16);
}
template <int W> __device__ inline Lane<W> secondOperand(const T *tile) {
  int lane = threadIdx.x % 32;
  return Lane<W>(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
template <int W> __device__ inline Lane<W> secondTransposed(const T *tile) {
  int lane = threadIdx.x % 32;
  return Lane<W>(tile, lane % 16, lane / 16);
}

/** Two columns of a result. */
__device__ inline void storePair(T *at, float x, float y) {
  *(unsigned *)at = pair(x, y, T());
}
__device__ inline void storePair(f32 *at, float x, float y) {
  *(float2 *)at = make_float2(x, y);
}

/** Where columns c .. of a query's gradient are, of the rotary ones behind it. */
__device__ inline T *gradientAt(const QueryGradients &d, i64 row, int c) {
  return c < WIDTH ? d.q + row * WIDTH + c : d.qRope + row * ROPE + c - WIDTH;
}
/** Two columns of a query's gradient. */
__device__ inline void storeGradient(const QueryGradients &d, i64 row, int c,
                                     float x, float y) {
#if PLUS
  if (c < WIDTH) {
    float low, high;
    unpack(low, high, __ldg((const unsigned *)(d.plus + row * WIDTH + c)), T());
    x += low;
    y += high;
  }
#endif
  storePair(gradientAt(d, row, c), x, y);
}

/** The largest of what four neighbouring lanes, which share a row, have. */
__device__ inline float laneMost(float most) {
  most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
  return fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
}

/**
 * The largest element of a lane's row of accumulators, the first one or the one 8
 * further; four neighbouring lanes share it.
 */
template <int COLUMNS>
__device__ inline float rowMost(const float (&x)[COLUMNS][4], int half) {
  float most = -INFINITE;
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
    most = fmaxf(most, fmaxf(x[n][2 * half], x[n][2 * half + 1]));
  }
  return laneMost(most);
}

/** Columns 16 k of accumulators as a first operand. */
template <int TILES>
__device__ inline void operandOf(unsigned (&a)[4], const float (&x)[TILES][4],
                                 int k) {
  a[0] = pair(x[2 * k][0], x[2 * k][1], T());
  a[1] = pair(x[2 * k][2], x[2 * k][3], T());
  a[2] = pair(x[2 * k + 1][0], x[2 * k + 1][1], T());
  a[3] = pair(x[2 * k + 1][2], x[2 * k + 1][3], T());
}

/** sums += a b, of 16 columns of b. */
template <int TILES>
__device__ inline void multiply(float (&sums)[TILES][4], int n,
                                const unsigned (&a)[4],
                                const unsigned (&b)[4]) {
  mma(sums[2 * n], a, b[0], b[1], T());
  mma(sums[2 * n + 1], a, b[2], b[3], T());
}

/**
 * sums += a b^T of a warp's row tiles, over DEPTH columns: `first(x, m, k)`
 * loads columns 16 k of row tile m, `second` the rows of b. UNROLLED steps at a
 * time: the addresses of four repeat, and more take registers.
 */
template <int COLUMNS, int DEPTH, int UNROLLED, int W, typename First>
__device__ inline void multiplyRows(float (&sums)[ROW_TILES][COLUMNS / 8][4],
                                    First first, const Lane<W> &second) {
#pragma unroll UNROLLED
  for (int k = 0; k < DEPTH / 16; k++) {
    unsigned a[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) first(a[m], m, k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      unsigned b[4];
      second.template load<false>(b, 16 * n, k);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) multiply(sums[m], n, a[m], b);
    }
  }
}

/** sums += p b of a warp's row tiles, with p in accumulators. */
template <int COLUMNS, int DEPTH, int W>
__device__ inline void multiplyColumns(float (&sums)[ROW_TILES][COLUMNS / 8][4],
                                       const float (&p)[ROW_TILES][DEPTH / 8][4],
                                       const Lane<W> &second) {
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    unsigned a[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) operandOf(a[m], p[m], k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      unsigned b[4];
      second.template load<true>(b, 16 * k, n);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) multiply(sums[m], n, a[m], b);
    }
  }
}

template <int COLUMNS>
__device__ inline void clear(float (&sums)[ROW_TILES][COLUMNS][4]) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) clear(sums[m]);
}

/** Copies of 16 bytes; `policy`: those of rows that the L2 cache need not keep. */
struct Copy {
  __device__ void operator()(T *to, const T *from, bool valid) const {
    cpAsync16(to, from, valid);
  }
};
struct CopyOnce {
  CachePolicy policy;
  __device__ void operator()(T *to, const T *from, bool valid) const {
    cpAsync16(to, from, valid, policy);
  }
};

/**
 * Starts to copy COLUMNS elements of COUNT rows to the tile's columns from
 * FIRST on. Row i is row `rowOf(i)` of `base`, zeros where that is negative;
 * BY threads share the work, of which this is number `thread`.
 */
template <int W, int COUNT, int FIRST, int COLUMNS, int BY, typename RowOf,
          typename Copier = Copy>
__device__ inline void copyRows(T *tile, int thread, const T *base, int stride,
                                RowOf rowOf, Copier copy = Copier()) {
  constexpr int PIECES = COLUMNS / 8;
  // One thread a row idles where that divides them: of 7 pieces, one in 8.
  constexpr int TURN =
      BY % PIECES > 0 && BY % (PIECES + 1) == 0 ? PIECES + 1 : PIECES;
  // Where a thread keeps its column, only rows have to be counted.
  constexpr bool KEEPS = BY % TURN == 0;
#pragma unroll
  for (int n = 0; n < (COUNT * TURN + BY - 1) / BY; n++) {
    int x = thread + n * BY;
    int i = KEEPS ? thread / TURN + n * (BY / TURN) : x / TURN;
    int piece = KEEPS ? thread % TURN : x % TURN;
    if constexpr (TURN > PIECES) {
      if (piece == PIECES) break;
    }
    if (COUNT * TURN % BY > 0 && i >= COUNT) break;
    int row = rowOf(i);
    copy(tile + Tile<W>::at(i, FIRST / 8 + piece),
         base + (i64)row * stride + piece * 8, row >= 0);
  }
}

/** Columns of COUNT rows from FIRST on are 0: no copy writes there. */
template <int W, int COUNT, int FIRST>
__device__ inline void clearColumns(T *tile) {
  if constexpr (FIRST < W) {
    static_assert(W - FIRST == 8, "one piece a row");
    for (int i = threadIdx.x; i < COUNT; i += THREADS) {
      *(int4 *)(tile + Tile<W>::at(i, FIRST / 8)) = make_int4(0, 0, 0, 0);
    }
  }
}

/** Rows of the table to a tile: of queries, or of what has their rows. */
template <int W, int FIRST, int COLUMNS>
__device__ inline void copyQueries(T *tile, const T *base,
                                   const RowTable<ROWS> &rows) {
  copyRows<W, ROWS, FIRST, COLUMNS, THREADS>(
      tile, threadIdx.x, base, COLUMNS, [&](int i) { return rows.index[i]; });
}

/** Keys and values of a unit from position 0 of its sequence on. */
struct Source {
  const T *k, *kRope, *v;
  int keyStride, valueStride;
};

__device__ inline Source sourceOf(const Call &u, const Sequence &s, int head) {
  i64 start = keyStart(s);
  return {u.k + (start * u.keyHeads + head) * WIDTH, u.kRope + start * ROPE,
          u.v + (start * u.keyHeads + head) * VALUE, u.keyHeads * WIDTH,
          u.keyHeads * VALUE};
}

/** The key positions of COUNT slots of a walk from `base` on, -1 for none. */
template <int COUNT> struct Positions {
  const Walk &walk;
  int base;
  // Where the slots lie in one block, its list is read once.
  static constexpr bool IN_ONE = VIEW == SELECTED && BLOCK % COUNT == 0;
  int first;

  __device__ Positions(const Walk &walk, int base) : walk(walk), base(base) {
    if (IN_ONE) first = base < walk.end ? inList(base) : -COUNT;
  }

  __device__ int inList(int slot) const {
    int block = walk.list[slot / BLOCK];
    return block < 0 ? -COUNT : block * BLOCK + slot % BLOCK;
  }
  __device__ int operator[](int i) const {
    if (IN_ONE) return first + i < walk.keys ? first + i : -1;
    if (base + i >= walk.end) return -1;
    if (VIEW != SELECTED) return base + i;
    int at = inList(base + i);
    return at < walk.keys ? at : -1;
  }
};

/**
 * Starts to copy the keys of slots `base ..`, values behind them; LATENT: a
 * key's first columns are its value.
 */
__device__ inline void copyKeys(T *stage, const Source &from, const Walk &walk,
                                int base) {
  int thread = threadIdx.x % LOADERS;
  int first = threadIdx.x / LOADERS * LOADED;
  Positions<LOADED> positions(walk, base + first);
  auto rowOf = [&](int i) { return positions[i]; };
  T *tileK = stage + first * KEY;
  copyRows<KEY, LOADED, 0, WIDTH, LOADERS>(tileK, thread, from.k, from.keyStride,
                                           rowOf);
#if ROPE > 0
  copyRows<KEY, LOADED, WIDTH, ROPE, LOADERS>(tileK, thread, from.kRope, ROPE,
                                              rowOf);
#endif
#if !LATENT
  copyRows<VALUES, LOADED, 0, VALUE, LOADERS>(stage + N * KEY + first * VALUES,
                                              thread, from.v, from.valueStride,
                                              rowOf);
#endif
}

/** Elements of keys and values of one tile. */
constexpr int STAGE = N * (KEY + (LATENT ? 0 : VALUES));

/** What products over whole tiles read behind the columns of keys and values. */
__device__ inline void clearStages(T *stages) {
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    clearColumns<KEY, N, WIDTH + ROPE>(stages + n * STAGE);
#if !LATENT
    clearColumns<VALUES, N, VALUE>(stages + n * STAGE + N * KEY);
#endif
  }
}

/** Until the copies of the thread's loaders are there for all of them. */
template <int PENDING> __device__ inline void awaitCopies() {
  cpAsyncWait<PENDING>();
  if (LOADERS == 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/** The selected blocks of a walk, in shared memory; those of -1 end it. */
__device__ inline void keepList(const Call &u, Walk &walk, int *list) {
  for (int n = threadIdx.x; n < u.count; n += THREADS) list[n] = walk.list[n];
  __syncthreads();
  int count = u.count;
  while (count > 0 && list[count - 1] < 0) count--;
  walk = {0, count * BLOCK, list, walk.keys};
}

__device__ inline int warpLeast(int x) {
  for (int reach = 16; reach > 0; reach /= 2) {
    x = min(x, __shfl_xor_sync(0xffffffff, x, reach));
  }
  return x;
}
__device__ inline int warpMost(int x) { return ~warpLeast(~x); }

/** What all rows of a warp see, and what some of them do. */
struct Sight {
  int first, last, someFirst, someLast;

  /** All lanes write the same. */
  __device__ void set(const RowTable<ROWS> &rows, int warpRow) {
    int row = warpRow + threadIdx.x % 32 % (16 * ROW_TILES);
    bool isRow = rows.index[row] >= 0;
    first = warpMost(isRow ? rows.first[row] : 0);
    last = warpLeast(isRow ? rows.last[row] : 1 << 30);
    someFirst = warpLeast(isRow ? rows.first[row] : 1 << 30);
    someLast = warpMost(isRow ? rows.last[row] : -1);
  }

  /** Whether no row sees any of COUNT slots, and whether all rows see all. */
  template <int COUNT>
  __device__ void look(const Walk &walk, int base, bool &none,
                       bool &whole) const {
    if (VIEW != SELECTED) {
      int end = base + COUNT - 1;
      none = base > someLast || end < someFirst;
      whole = base >= first && end <= last;
      return;
    }
    Positions<COUNT> positions(walk, base);
    if (positions.IN_ONE) {
      none = positions.first < 0 || positions.first > someLast;
      whole = positions.first + COUNT - 1 <= last;
      return;
    }
    bool outside = true;
    bool inside = true;
    for (int i = threadIdx.x % 32; i < COUNT; i += 32) {
      int at = positions[i];
      outside = outside && (at < 0 || at > someLast);
      inside = inside && at >= 0 && at <= last;
    }
    none = __all_sync(0xffffffff, outside);
    whole = __all_sync(0xffffffff, inside);
  }
};

/** x = low everywhere that a row does not see the key of its column. */
template <int COUNT>
__device__ inline void hideUnseen(float (&x)[COUNT / 8][4], float low,
                                  const RowTable<ROWS> &rows, int firstRow,
                                  const Walk &walk, int base) {
  int row = firstRow + laneRow();
  int first[2] = {rows.first[row], rows.first[row + 8]};
  int last[2] = {rows.last[row], rows.last[row + 8]};
  Positions<COUNT> positions(walk, base);
#pragma unroll
  for (int n = 0; n < COUNT / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int at = positions[8 * n + laneColumn() + e % 2];
      if (at < first[e / 2] || at > last[e / 2] || at < 0) x[n][e] = low;
    }
  }
}

/**
 * The first WRITTEN columns of a block's results from its warps' accumulators:
 * `emit(row, column, x, y)` takes two columns. Where warps shared out the other side their parts are
 * added in the order of the warps; they use the memory of the tiles.
 */
template <int COLUMNS, int WRITTEN, typename Emit>
__device__ inline void emitRows(const float (&sums)[ROW_TILES][COLUMNS / 8][4],
                                void *memory, Emit emit) {
  // Eight floats further, the next row falls to other banks.
  constexpr int PITCH = COLUMNS + 8;
  float *parts = (float *)memory;
  int warp = threadIdx.x / 32;
  int firstRow = warp % ROW_WARPS * 16 * ROW_TILES + laneRow();
  if (KEY_WARPS > 1) __syncthreads();
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = firstRow + 16 * m + 8 * half;
      float *part = parts + (warp / ROW_WARPS * ROWS + row) * PITCH;
#pragma unroll
      for (int n = 0; n < WRITTEN / 8; n++) {
        int c = 8 * n + laneColumn();
        float x = sums[m][n][2 * half];
        float y = sums[m][n][2 * half + 1];
        if (KEY_WARPS > 1) {
          *(float2 *)(part + c) = make_float2(x, y);
        } else {
          emit(row, c, x, y);
        }
      }
    }
  }
  if (KEY_WARPS == 1) return;
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * (WRITTEN / 2); i += THREADS) {
    int row = i / (WRITTEN / 2);
    int c = i % (WRITTEN / 2) * 2;
    float2 sum = make_float2(0, 0);
    for (int w = 0; w < KEY_WARPS; w++) {
      float2 part = *(const float2 *)(parts + (w * ROWS + row) * PITCH + c);
      sum.x += part.x;
      sum.y += part.y;
    }
    emit(row, c, sum.x, sum.y);
  }
}
