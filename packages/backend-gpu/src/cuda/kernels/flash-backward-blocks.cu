// All gradients of selected attention in one walk over those that chose a block,
// for 16-bit types: 5 products in place of 7. The block's keys stay, and 64 rows
// of lists that have it pass. What the block adds to the gradients of a list's
// queries goes to scratch memory, 16 rows a part; `sumBlockParts` adds the parts
// of a list in its order.
//
// Some blocks are chosen by all. So a block of threads has an item: at most
// ITEM lists that have the block. The first item adds to the sums of the keys,
// others leave theirs to `sumItems`.
#include "flash-gradients.cuh"
#include "block-items.cuh"
#include "prefix.cuh"

static_assert(BLOCK == N && ROWS % LIST_ROWS == 0 && LIST_ROWS % 16 == 0,
              "a tile has whole lists, and of each whole parts");

/** Elements of a stage: rows of q and of dO. */
constexpr int ROW_STAGE = ROWS * (KEY + VALUE);
static_assert(THREADS == SUMMERS, "who sums an item");

/** Of a row of the inverse: its entries, and its further items. */
struct Row {
  int first, count, further, furtherCount;
};

/** How many lists have each block; a warp a row of the inverse. */
extern "C" __global__ void countPlaces(const unsigned short *places, Row *rows,
                                       int rowCount, int leaders) {
  int row = globalIndex() / 32;
  int lane = threadIdx.x % 32;
  if (row >= rowCount) return;
  int count = 0;
  for (int i = lane; i < leaders; i += 32) {
    count += places[(i64)row * leaders + i] > 0;
  }
  count = warpSum(count);
  if (lane == 0) rows[row].count = count;
}

/** Where each row's entries lie, and the items of all; one block of threads. */
extern "C" __global__ void shareOut(Row *rows, Item *items, int *itemCount,
                                    int rowCount) {
  __shared__ int3 counts[32];
  // Entries, items and further items.
  int3 done = make_int3(0, 0, 0);
  for (int base = 0; base < rowCount; base += blockDim.x) {
    int row = base + threadIdx.x;
    int count = row < rowCount ? rows[row].count : 0;
    int own = (count + ITEM - 1) / ITEM;
    int further = max(own - 1, 0);
    int3 total = make_int3(0, 0, 0);
    int3 at = sumsBefore(make_int3(count, own, further), total, counts);
    int first = done.x + at.x;
    int firstItem = done.y + at.y;
    int firstFurther = done.z + at.z;
    if (row < rowCount) rows[row] = {first, count, firstFurther, further};
    for (int n = 0; n < own; n++) {
      items[firstItem + n] = {row, first + n * ITEM, min(ITEM, count - n * ITEM),
                              n == 0 ? -1 : firstFurther + n - 1};
    }
    done = make_int3(done.x + total.x, done.y + total.y, done.z + total.z);
  }
  if (threadIdx.x == 0) *itemCount = done.y;
}

/** (leader, place) of the lists that have a block, in order; a warp a row. */
extern "C" __global__ void listEntries(const unsigned short *places,
                                       const Row *rows, unsigned *entries,
                                       int rowCount, int leaders) {
  int row = globalIndex() / 32;
  int lane = threadIdx.x % 32;
  if (row >= rowCount) return;
  unsigned *to = entries + rows[row].first;
  constexpr int AT_ONCE = 8;
  for (int base = lane; base < leaders + lane; base += 32 * AT_ONCE) {
    int place[AT_ONCE];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      int leader = base + 32 * n;
      place[n] = leader < leaders ? places[(i64)row * leaders + leader] : 0;
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      unsigned having = __ballot_sync(0xffffffff, place[n] > 0);
      if (place[n] > 0) {
        unsigned leader = base + 32 * n;
        to[__popc(having & ((1u << lane) - 1))] = leader << 16 | (place[n] - 1);
      }
      to += __popc(having);
    }
  }
}

/** The rows of an item: of its lists, one behind another. */
struct ItemRows {
  const unsigned short *leaders;
  int end, firstLeader;

  __device__ int queryOf(int rho) const {
    int leader = firstLeader + leaders[rho / LIST_ROWS];
    return leader * SHARING + rho % LIST_ROWS / UNIT;
  }
};

/** Number of an item's row among all rows, -1 for none. */
__device__ inline int rowNumber(const Call &u, const Sequence &s,
                                const ItemRows &rows, int head0, int rho) {
  if (rho >= rows.end) return -1;
  int query = rows.queryOf(rho);
  // The last leader may have fewer queries.
  if (query >= s.queryCount) return -1;
  return (s.queryStart + query) * u.heads + head0 + rho % UNIT;
}

/** What a block's first item adds to the gradients of its keys. */
__device__ inline void addToKeys(const Call &u, const Sequence &s, int keyHead,
                                 int block, f32 *sumsK, f32 *sumsV, f32 *sumsKRope,
                                 const float (&dK)[ROW_TILES][KEY / 16][4],
                                 const float (&dV)[ROW_TILES][VALUE / 16][4]) {
  int warp = threadIdx.x / 32;
  int half = warp / ROW_WARPS;
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int side = 0; side < 2; side++) {
      int key = block * BLOCK + warp % ROW_WARPS * 32 + 16 * m + 8 * side + laneRow();
      if (key >= s.keyCount) continue;
      i64 at = (i64)(s.keyStart + key) * u.keyHeads + keyHead;
      auto columnOf = [&](int n) {
        return 16 * (n / 2 * 2 + half) + n % 2 * 8 + laneColumn();
      };
      auto keyAt = [&](int n) {
        int c = columnOf(n);
        return (float2 *)(c < WIDTH ? sumsK + at * WIDTH + c
                                    : sumsKRope + at * ROPE + c - WIDTH);
      };
      auto valueAt = [&](int n) {
        return (float2 *)(sumsV + at * VALUE + columnOf(n));
      };
      auto sum = [&](float2 old, const float (&x)[4], float scale) {
        return make_float2(old.x + x[2 * side] * scale,
                           old.y + x[2 * side + 1] * scale);
      };
      // All loads before the first store: a load may not pass one.
      float2 oldK[KEY / 16], oldV[VALUE / 16];
#pragma unroll
      for (int n = 0; n < KEY / 16; n++) oldK[n] = *keyAt(n);
#pragma unroll
      for (int n = 0; n < VALUE / 16; n++) oldV[n] = *valueAt(n);
#pragma unroll
      for (int n = 0; n < KEY / 16; n++) *keyAt(n) = sum(oldK[n], dK[m][n], u.scale);
#pragma unroll
      for (int n = 0; n < VALUE / 16; n++) *valueAt(n) = sum(oldV[n], dV[m][n], 1);
    }
  }
}

/**
 * Leaders `firstLeader ..` of each sequence, `leaders` of them; parts
 * `[B, lists, leaders, count, LIST_PARTS, 2, HALF_PART]`, and of each further
 * item its sums as they lie in the threads.
 */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashBackwardBlocks(Call u, const T *dO, const float2 *statistics,
                        uint4 *parts, f32 *sumsK, f32 *sumsV, f32 *sumsKRope,
                        float4 *further, const Item *items, const int *itemCount,
                        const unsigned *entries, int firstLeader, int leaders,
                        int blocks) {
  extern __shared__ int4 memory[];
  if (blockIdx.x >= *itemCount) return;
  T *tileK = (T *)memory;
  T *tileV = LATENT ? tileK : tileK + N * KEY;
  T *stages = tileK + N * (KEY + (LATENT ? 0 : VALUE));
  T *tileP = stages + STAGES * ROW_STAGE;
  T *tileS = tileP + ROWS * N;
  float2 *known = (float2 *)(tileS + ROWS * N);
  int *numbers = (int *)(known + ROWS);
  unsigned short *own = (unsigned short *)(numbers + ROWS);

  Item item = items[blockIdx.x];
  int block = item.row % blocks;
  int list = item.row / blocks;
  int keyHead = list % u.lists;
  int head0 = keyHead * UNIT;
  Sequence s = u.sequences[list / u.lists];
  for (int i = threadIdx.x; i < item.count; i += THREADS) {
    own[i] = entries[item.first + i] >> 16;
  }
  int firstKey = block * BLOCK;
  Source from = sourceOf(u, s, keyHead);
  auto keyOf = [&](int i) {
    return firstKey + i < s.keyCount ? firstKey + i : -1;
  };
  copyRows<KEY, N, 0, WIDTH, THREADS>(tileK, threadIdx.x, from.k, from.keyStride,
                                      keyOf);
#if ROPE > 0
  copyRows<KEY, N, WIDTH, ROPE, THREADS>(tileK, threadIdx.x, from.kRope, ROPE,
                                         keyOf);
#endif
#if !LATENT
  copyRows<VALUE, N, 0, VALUE, THREADS>(tileV, threadIdx.x, from.v,
                                        from.valueStride, keyOf);
#endif
  ItemRows rows = {own, item.count * LIST_ROWS, firstLeader};
  auto copyStage = [&](int stage) {
    auto rowOf = [&](int i) { return numbers[i]; };
    T *tileQ = stages + stage * ROW_STAGE;
    copyRows<KEY, ROWS, 0, WIDTH, THREADS>(tileQ, threadIdx.x, u.q, WIDTH, rowOf);
#if ROPE > 0
    copyRows<KEY, ROWS, WIDTH, ROPE, THREADS>(tileQ, threadIdx.x, u.qRope, ROPE,
                                              rowOf);
#endif
    copyRows<VALUE, ROWS, 0, VALUE, THREADS>(tileQ + ROWS * KEY, threadIdx.x, dO,
                                             VALUE, rowOf);
  };
  // Row threadIdx.x of the round whose numbers are set last.
  int number = -1;
  auto setNumbers = [&](int base) {
    if (threadIdx.x >= ROWS) return;
    number = rowNumber(u, s, rows, head0, base + threadIdx.x);
    numbers[threadIdx.x] = number;
  };
  // Wanted in the first half of a round only: one place is enough.
  auto copyKnown = [&]() {
    if (threadIdx.x >= ROWS) return;
    cpAsync8(known + threadIdx.x, statistics + number, number >= 0);
  };
  __syncthreads();
  setNumbers(0);
  __syncthreads();
  copyStage(0);
  copyKnown();
  cpAsyncCommit();
  __syncthreads();
  setNumbers(ROWS);

  int warp = threadIdx.x / 32;
  int warpRow = warp % ROW_WARPS * 32;
  int half = warp / ROW_WARPS;
  int warpKey = half * SPAN;
  constexpr int VALUE_PITCH = LATENT ? KEY : VALUE;
  Lane<KEY> keyLane = secondOperand<KEY>(tileK + warpKey * KEY);
  Lane<VALUE_PITCH> valueLane =
      secondOperand<VALUE_PITCH>(tileV + warpKey * VALUE_PITCH);
  Lane<KEY> keyHalf = halfOf<KEY>(tileK, half);
  Lane<N> scoreLane = firstOperand<N>(tileS + warpRow * N);
  // Of the gradients of keys the warp has the keys of the same numbers as its
  // rows: weights as the first operand, transposed.
  Lane<N> weightLane = secondOperand<N>(tileP);
  weightLane.turn ^= warpRow / 8;
  uint4 *ownParts =
      parts + ((i64)list * leaders * u.count * LIST_PARTS * 2 + half) * HALF_PART +
      threadIdx.x % 32;
  float scale = u.scale * LOG2_E;
  float dK[ROW_TILES][KEY / 16][4];
  float dV[ROW_TILES][VALUE / 16][4];
  clear(dK);
  clear(dV);
  int stage = 0;
  for (int base = 0; base < rows.end; base += ROWS) {
    awaitCopies<STAGES - 2>();
    copyStage(1 - stage);
    cpAsyncCommit();
    const T *tileQ = stages + stage * ROW_STAGE;
    const T *tileO = tileQ + ROWS * KEY;
    stage = 1 - stage;

    float p[ROW_TILES][SPAN / 8][4];
    clear(p);
    Lane<KEY> queryLane = firstOperand<KEY>(tileQ + warpRow * KEY);
    auto query = [&](unsigned (&a)[4], int m, int k) {
      queryLane.load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, KEY, 4>(p, query, keyLane);
    // Queries only rise.
    int firstRow = base + warpRow;
    bool whole = firstRow >= rows.end ||
                 rows.queryOf(firstRow) >= firstKey + warpKey + SPAN - 1;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int side = 0; side < 2; side++) {
        int row = warpRow + 16 * m + 8 * side + laneRow();
        float log = known[row].x * LOG2_E;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 2 * side; e < 2 * side + 2; e++) {
            p[m][n][e] = exp2Fast(p[m][n][e] * scale - log);
          }
        }
        if (whole || base + row >= rows.end) continue;
        int last = rows.queryOf(base + row) - firstKey - warpKey;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            if (8 * n + laneColumn() + e > last) p[m][n][2 * side + e] = 0;
          }
        }
      }
      keepWeights(tileP, p[m], warpRow + 16 * m + laneRow(), warpKey);
    }
    float dP[ROW_TILES][SPAN / 8][4];
    clear(dP);
    Lane<VALUE> gradientLane = firstOperand<VALUE>(tileO + warpRow * VALUE);
    auto gradient = [&](unsigned (&a)[4], int m, int k) {
      gradientLane.template load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, VALUE, 4>(dP, gradient, valueLane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float delta = known[warpRow + 16 * m + e / 2 * 8 + laneRow()].y;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) p[m][n][e] *= dP[m][n][e] - delta;
      }
      keepWeights(tileS, p[m], warpRow + 16 * m + laneRow(), warpKey);
    }
    __syncthreads();
    copyKnown();
    cpAsyncCommit();
    setNumbers(base + 2 * ROWS);

    {
      float dQ[ROW_TILES][KEY / 16][4];
      clear(dQ);
      auto score = [&](unsigned (&a)[4], int m, int k) {
        scoreLane.load<false>(a, 16 * m, k);
      };
      multiplyHalf<KEY / 2, N>(dQ, score, keyHalf);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
        int rho = firstRow + 16 * m;
        if (rho >= rows.end) continue;
        unsigned entry = entries[item.first + rho / LIST_ROWS];
        i64 part = ((i64)(entry >> 16) * u.count + (entry & 0xffff)) * LIST_PARTS +
                   rho % LIST_ROWS / 16;
        writePart<KEY / 2>(ownParts + part * 2 * HALF_PART, dQ[m]);
      }
    }
    auto transposedP = [&](unsigned (&a)[4], int m, int k) {
      weightLane.load<true>(a, 16 * k, m);
    };
    auto transposedS = [&](unsigned (&a)[4], int m, int k) {
      weightLane.load<true>(a, ROWS + 16 * k, m);
    };
    multiplyHalf<KEY / 2, ROWS>(dK, transposedS, halfOf<KEY>(tileQ, half));
    multiplyHalf<VALUE / 2, ROWS>(dV, transposedP, halfOf<VALUE>(tileO, half));
  }
  cpAsyncWait<0>();

  if (item.further < 0) {
    addToKeys(u, s, keyHead, block, sumsK, sumsV, sumsKRope, dK, dV);
    return;
  }
  float4 *to = further + (i64)item.further * ITEM_WORDS * THREADS + threadIdx.x;
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int n = 0; n < KEY / 16; n++, to += THREADS) {
      *to = make_float4(dK[m][n][0], dK[m][n][1], dK[m][n][2], dK[m][n][3]);
    }
#pragma unroll
    for (int n = 0; n < VALUE / 16; n++, to += THREADS) {
      *to = make_float4(dV[m][n][0], dV[m][n][1], dV[m][n][2], dV[m][n][3]);
    }
  }
}

/** Words of an item that a thread of `sumItems` has. */
constexpr int SUMMED = 4;
static_assert(ITEM_WORDS % SUMMED == 0, "whole shares");

/**
 * Adds the further items of a block to its sums, in their order. Blocks of
 * threads share out the words of an item: many loads are in flight.
 */
extern "C" __global__ void __launch_bounds__(SUMMERS)
    sumItems(Call u, const Row *rows, const float4 *further, f32 *sumsK,
             f32 *sumsV, f32 *sumsKRope, int blocks) {
  Row row = rows[blockIdx.x];
  if (row.furtherCount == 0) return;
  int number = blockIdx.x / blocks;
  int keyHead = number % u.lists;
  Sequence s = u.sequences[number / u.lists];
  int firstWord = blockIdx.y * SUMMED;
  const float4 *from =
      further + ((i64)row.further * ITEM_WORDS + firstWord) * SUMMERS + threadIdx.x;
  float4 sums[SUMMED] = {};
#pragma unroll 4
  for (int n = 0; n < row.furtherCount; n++) {
#pragma unroll
    for (int w = 0; w < SUMMED; w++) {
      float4 x = from[w * SUMMERS];
      sums[w] = make_float4(sums[w].x + x.x, sums[w].y + x.y, sums[w].z + x.z,
                            sums[w].w + x.w);
    }
    from += ITEM_WORDS * SUMMERS;
  }

  // Words as in `addToKeys`: of 16 keys those of dK, then those of dV.
  int warp = threadIdx.x / 32;
  auto placeOf = [&](int w, int side) {
    int word = firstWord + w;
    int m = word / (ITEM_WORDS / 2);
    int n = word % (ITEM_WORDS / 2);
    int key = blockIdx.x % blocks * BLOCK + warp % 2 * 32 + 16 * m + 8 * side +
              laneRow();
    if (key >= s.keyCount) return (float2 *)0;
    i64 at = (i64)(s.keyStart + key) * u.keyHeads + keyHead;
    bool isValue = n >= KEY / 16;
    if (isValue) n -= KEY / 16;
    int c = 16 * (n / 2 * 2 + warp / 2) + n % 2 * 8 + laneColumn();
    return (float2 *)(isValue      ? sumsV + at * VALUE + c
                      : c < WIDTH ? sumsK + at * WIDTH + c
                                  : sumsKRope + at * ROPE + c - WIDTH);
  };
  float2 *places[SUMMED][2];
  float2 old[SUMMED][2];
#pragma unroll
  for (int w = 0; w < SUMMED; w++) {
#pragma unroll
    for (int side = 0; side < 2; side++) {
      places[w][side] = placeOf(w, side);
      if (places[w][side]) old[w][side] = *places[w][side];
    }
  }
#pragma unroll
  for (int w = 0; w < SUMMED; w++) {
    bool isValue = (firstWord + w) % (ITEM_WORDS / 2) >= KEY / 16;
    float scale = isValue ? 1 : u.scale;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      float2 x = side == 0 ? make_float2(sums[w].x, sums[w].y)
                           : make_float2(sums[w].z, sums[w].w);
      float2 sum = make_float2(old[w][side].x + x.x * scale,
                               old[w][side].y + x.y * scale);
      if (places[w][side]) *places[w][side] = sum;
    }
  }
}

/** dQ = scale times the sum of a list's parts, 16 rows a block of threads. */
extern "C" __global__ void __launch_bounds__(2 * HALF_PART)
    sumBlockParts(Call u, const uint4 *parts, QueryGradients d,
                  int firstLeader, int leaders, int blocks) {
  Sequence s = u.sequences[blockIdx.z];
  int leader = firstLeader + blockIdx.x / LIST_PARTS;
  int sub = blockIdx.x % LIST_PARTS;
  if (leader * SHARING >= s.queryCount) return;
  const int *list =
      u.indices + ((i64)(s.leaderStart + leader) * u.lists + blockIdx.y) * u.count;
  i64 number = (i64)blockIdx.z * u.lists + blockIdx.y;
  const uint4 *from =
      parts + ((number * leaders + leader - firstLeader) * u.count * LIST_PARTS + sub) *
                  2 * HALF_PART + threadIdx.x;
  float sums[8] = {};
  for (int first = 0; first < u.count; first += PARTS_AT_ONCE) {
    addParts(sums, [&](int i, uint4 &part) {
      int block = first + i < u.count ? list[first + i] : -1;
      if (block < 0 || block >= blocks) return;
      part = __ldcs(from + (i64)(first + i) * LIST_PARTS * 2 * HALF_PART);
    });
  }

  int half = threadIdx.x / HALF_PART;
  int column = threadIdx.x % HALF_PART / 32;
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    int rho = 16 * sub + laneRow() + e / 2 % 2 * 8;
    int c = 16 * (2 * column + half) + e / 4 * 8 + laneColumn();
    int query = leader * SHARING + rho / UNIT;
    if (query >= s.queryCount) continue;
    i64 row = (i64)(s.queryStart + query) * u.heads + blockIdx.y * UNIT + rho % UNIT;
    storeGradient(d, row, c, sums[e] * u.scale, sums[e + 1] * u.scale);
  }
}
