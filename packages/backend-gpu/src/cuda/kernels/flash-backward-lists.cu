// All gradients of selected attention in one walk over each list, for 16-bit
// types: 5 products in place of 7. What a list's rows add to the gradients of
// its keys goes to scratch memory, 16 keys a part; `sumListParts` adds the parts
// of a block in the order of the leaders that chose it.
#include "flash-gradients.cuh"

/** Tiles of rows of a list. */
constexpr int LIST_TILES = (LIST_ROWS + ROWS - 1) / ROWS;
/** 16-byte words of a half of a part, one a thread of those that add them. */
constexpr int HALF_PART = KEY + VALUE;
constexpr int BLOCK_PARTS = BLOCK / 16;

/**
 * Leaders `firstLeader ..` of each sequence, `leaders` of them; parts
 * `[B, H / UNIT, leaders, LIST_TILES, count BLOCK_PARTS, 2, HALF_PART]`.
 */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashBackwardLists(Call u, const T *dO, const float2 *statistics,
                       QueryGradients d, uint4 *parts, int firstLeader, int leaders) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  // LSE in units of a factor 2, and dO . o.
  __shared__ float2 known[ROWS];
  __shared__ Sight sights[WARPS];
  T *stages = (T *)memory;
  T *tileQ = stages + STAGES * STAGE;
  T *tileO = tileQ + ROWS * KEY;
  T *tileP = tileO + ROWS * VALUE;
  T *tileS = tileP + ROWS * N;
  int *list = (int *)(tileS + ROWS * N);

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * UNIT;
  Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
  Walk walk;
  int tile = firstLeader * LIST_TILES + blockIdx.x;
  if (!openRows(u, s, tile, head0, rows, walk)) return;
  keepList(u, walk, list);
  __syncthreads();
  copyQueries<KEY, 0, WIDTH>(tileQ, u.q, rows);
#if ROPE > 0
  copyQueries<KEY, WIDTH, ROPE>(tileQ, u.qRope, rows);
#endif
  copyQueries<VALUE, 0, VALUE>(tileO, dO, rows);
  if (threadIdx.x < ROWS) {
    int index = rows.index[threadIdx.x];
    float2 row = index < 0 ? make_float2(0, 0) : statistics[index];
    known[threadIdx.x] = make_float2(row.x * LOG2_E, row.y);
  }
  // Positions of the keys that are copied next: looked up once a key.
  __shared__ int positions[N];
  auto setPositions = [&](int base) {
    if (threadIdx.x < N) {
      positions[threadIdx.x] = Positions<N>(walk, base)[threadIdx.x];
    }
  };
  auto copyStage = [&](int stage) {
    auto rowOf = [&](int i) { return positions[i]; };
    T *tileK = stages + stage * STAGE;
    copyRows<KEY, N, 0, WIDTH, THREADS>(tileK, threadIdx.x, from.k, from.keyStride,
                                        rowOf);
#if ROPE > 0
    copyRows<KEY, N, WIDTH, ROPE, THREADS>(tileK, threadIdx.x, from.kRope, ROPE,
                                           rowOf);
#endif
#if !LATENT
    copyRows<VALUE, N, 0, VALUE, THREADS>(tileK + N * KEY, threadIdx.x, from.v,
                                          from.valueStride, rowOf);
#endif
    cpAsyncCommit();
  };
  setPositions(0);
  __syncthreads();
  copyStage(0);
  __syncthreads();
  setPositions(N);

  int warp = threadIdx.x / 32;
  int warpRow = warp % ROW_WARPS * 32;
  int half = warp / ROW_WARPS;
  int warpKey = half * SPAN;
  sights[warp].set(rows, warpRow);
  Lane<KEY> queryLane = firstOperand<KEY>(tileQ + warpRow * KEY);
  Lane<VALUE> gradientLane = firstOperand<VALUE>(tileO + warpRow * VALUE);
  Lane<N> scoreLane = firstOperand<N>(tileS + warpRow * N);
  // Of the gradients of keys the warp has the keys of the same numbers as its
  // rows: weights as the first operand, transposed.
  Lane<N> weightLane = secondOperand<N>(tileP);
  weightLane.turn ^= warpRow / 8;
  Lane<KEY> queryHalf = halfOf<KEY>(tileQ, half);
  Lane<VALUE> gradientHalf = halfOf<VALUE>(tileO, half);
  auto transposed = [&](unsigned (&a)[4], int m, int k) {
    weightLane.load<true>(a, 16 * k, m);
  };
  auto transposedS = [&](unsigned (&a)[4], int m, int k) {
    weightLane.load<true>(a, ROWS + 16 * k, m);
  };
  i64 number = (i64)blockIdx.z * gridDim.y + blockIdx.y;
  int slots = u.count * BLOCK_PARTS;
  uint4 *ownParts =
      parts + (((number * leaders * LIST_TILES + blockIdx.x) * slots) * 2 + half) *
                  HALF_PART + threadIdx.x % 32;
  float scale = u.scale * LOG2_E;
  float sums[ROW_TILES][KEY / 16][4];
  clear(sums);
  int stage = 0;
  for (int base = walk.first; base < walk.end; base += N) {
    awaitCopies<STAGES - 2>();
    copyStage(1 - stage);
    const T *tileK = stages + stage * STAGE;
    const T *tileV = LATENT ? tileK : tileK + N * KEY;
    stage = 1 - stage;

    constexpr int VALUE_PITCH = LATENT ? KEY : VALUE;
    float p[ROW_TILES][SPAN / 8][4];
    clear(p);
    auto query = [&](unsigned (&a)[4], int m, int k) {
      queryLane.load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, KEY, 4>(p, query,
                               secondOperand<KEY>(tileK + warpKey * KEY));
    bool none, whole;
    sights[warp].look<SPAN>(walk, base + warpKey, none, whole);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float log = known[warpRow + 16 * m + e / 2 * 8 + laneRow()].x;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
          p[m][n][e] = exp2Fast(p[m][n][e] * scale - log);
        }
      }
      if (!whole) {
        hideUnseen<SPAN>(p[m], 0, rows, warpRow + 16 * m, walk, base + warpKey);
      }
      keepWeights(tileP, p[m], warpRow + 16 * m + laneRow(), warpKey);
    }
    float dP[ROW_TILES][SPAN / 8][4];
    clear(dP);
    auto gradient = [&](unsigned (&a)[4], int m, int k) {
      gradientLane.load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, VALUE, 4>(
        dP, gradient,
        secondOperand<VALUE_PITCH>(tileV + warpKey * VALUE_PITCH));
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
    setPositions(base + 2 * N);

    auto score = [&](unsigned (&a)[4], int m, int k) {
      scoreLane.load<false>(a, 16 * m, k);
    };
    multiplyHalf<KEY / 2, N>(sums, score, halfOf<KEY>(tileK, half));
    int part = (base + warpRow) / 16;
    int end = walk.end / 16;
    uint4 *to = ownParts + (i64)part * 2 * HALF_PART;
    {
      float dK[ROW_TILES][KEY / 16][4];
      clear(dK);
      multiplyHalf<KEY / 2, ROWS>(dK, transposedS, queryHalf);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
        if (part + m < end) writePart<KEY / 2>(to + m * 2 * HALF_PART, dK[m]);
      }
    }
    float dV[ROW_TILES][VALUE / 16][4];
    clear(dV);
    multiplyHalf<VALUE / 2, ROWS>(dV, transposed, gradientHalf);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      if (part + m >= end) continue;
      writePart<VALUE / 2>(to + m * 2 * HALF_PART + KEY, dV[m]);
    }
  }
  cpAsyncWait<0>();

#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int side = 0; side < 2; side++) {
      i64 index = rows.index[warpRow + 16 * m + 8 * side + laneRow()];
      if (index < 0) continue;
#pragma unroll
      for (int n = 0; n < KEY / 16; n++) {
        int c = 16 * (n / 2 * 2 + half) + n % 2 * 8 + laneColumn();
        storeGradient(d, index, c, sums[m][n][2 * side] * u.scale,
                      sums[m][n][2 * side + 1] * u.scale);
      }
    }
  }
}

/** Leaders that are looked through at a time. */
constexpr int ASKED = 4 * HALF_PART;

/** (leader, place) of those that have the block, in order; how many. */
__device__ inline int gatherPlaces(const unsigned short *places, int leaders,
                                   unsigned *found) {
  __shared__ int counts[HALF_PART / 32];
  int lane = threadIdx.x % 32;
  int warp = threadIdx.x / 32;
  int total = 0;
  for (int asked = 0; asked < leaders; asked += HALF_PART) {
    int leader = asked + threadIdx.x;
    int place = leader < leaders ? places[leader] : 0;
    unsigned having = __ballot_sync(0xffffffff, place > 0);
    // The counts of the round before, and what was found, are done with.
    __syncthreads();
    if (lane == 0) counts[warp] = __popc(having);
    __syncthreads();
    int before = total + __popc(having & ((1u << lane) - 1));
    for (int w = 0; w < HALF_PART / 32; w++) {
      if (w < warp) before += counts[w];
      total += counts[w];
    }
    if (place > 0) found[before] = (unsigned)leader << 16 | (place - 1);
  }
  __syncthreads();
  return total;
}

/**
 * Adds the parts of 16 keys to their sums, half of the columns a block of
 * threads: f32 [Nk, GK, WIDTH], [Nk, GK, VALUE], [Nk, GK, ROPE].
 */
extern "C" __global__ void __launch_bounds__(HALF_PART, 3)
    sumListParts(Call u, const uint4 *parts, const unsigned short *places,
                 f32 *sumsK, f32 *sumsV, f32 *sumsKRope, int firstLeader,
                 int leaders, int blocks) {
  __shared__ unsigned found[ASKED];
  Sequence s = u.sequences[blockIdx.z];
  int firstKey = blockIdx.x / 2 * 16;
  int half = blockIdx.x % 2;
  int keyHead = blockIdx.y;
  if (firstKey >= s.keyCount) return;
  int units = u.heads / u.keyHeads / UNIT;
  int slots = u.count * BLOCK_PARTS;
  float sums[8] = {};
  bool isChosen = false;
  for (int unit = 0; unit < units; unit++) {
    int number = keyHead * units + unit;
    int list = number * UNIT / (u.heads / u.lists);
    const unsigned short *own =
        places + (((i64)blockIdx.z * u.lists + list) * blocks + firstKey / BLOCK) *
                     leaders;
    const uint4 *unitParts =
        parts + ((((i64)blockIdx.z * (u.heads / UNIT) + number) * leaders *
                      LIST_TILES * slots + firstKey / 16 % BLOCK_PARTS) * 2 +
                 half) * HALF_PART + threadIdx.x;
    for (int asked = 0; asked < leaders; asked += ASKED) {
      int count = gatherPlaces(own + asked, min(ASKED, leaders - asked), found);
      isChosen = isChosen || count > 0;
      for (int first = 0; first < count * LIST_TILES; first += PARTS_AT_ONCE) {
        addParts(sums, [&](int i, uint4 &part) {
          int n = (first + i) / LIST_TILES;
          int tile = (first + i) % LIST_TILES;
          if (n >= count) return;
          int leader = asked + (found[n] >> 16);
          // The last leader may have fewer queries, and tiles without rows.
          int rows = (s.queryCount - (firstLeader + leader) * SHARING) * UNIT;
          if (tile > 0 && tile * ROWS >= rows) return;
          i64 slot = ((i64)leader * LIST_TILES + tile) * slots +
                     (found[n] & 0xffff) * BLOCK_PARTS;
          part = __ldcs(unitParts + slot * 2 * HALF_PART);
        });
      }
    }
  }

  // Of many blocks some leaders choose few.
  if (!isChosen) return;

  int column = threadIdx.x / 32;
  bool isKey = column < KEY / 32;
  if (!isKey) column -= KEY / 32;
  float scale = isKey ? u.scale : 1;
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    int key = firstKey + laneRow() + e / 2 % 2 * 8;
    int c = 16 * (2 * column + half) + e / 4 * 8 + laneColumn();
    if (key >= s.keyCount) continue;
    i64 at = (i64)(s.keyStart + key) * u.keyHeads + keyHead;
    f32 *to = !isKey      ? sumsV + at * VALUE + c
              : c < WIDTH ? sumsK + at * WIDTH + c
                          : sumsKRope + at * ROPE + c - WIDTH;
    float2 sum = *(float2 *)to;
    *(float2 *)to = make_float2(sum.x + sums[e] * scale, sum.y + sums[e + 1] * scale);
  }
}
