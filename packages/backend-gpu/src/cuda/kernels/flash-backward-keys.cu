// dV = sum over rows of p dO, dK = scale sum over rows of dS q, for 16-bit types:
// a block has ROWS keys, which are the rows of its products, and walks over the
// queries' rows that see any of them, N at a time, always in the same order.
// Every query has its key: position and number of a query are one.
//
// Where there are few keys, or some that most queries see, blocks share out the
// walk: each writes its part of the sums in f32.
#include "flash.cuh"

/** Leaders that are looked through at a time: a word of the bitmap a thread. */
#define ASKED (32 * THREADS)
/** Rows of a list: its leader's queries by the heads that share it. */
#define SHARED_ROWS (SHARING * UNIT)

/** Elements of a tile of queries, of dO, and of (lse, dO . o) behind them. */
constexpr int ROW_STAGE = N * (KEY + VALUES) + N * (int)(sizeof(float2) / sizeof(T));

/** Sums of wide keys leave few registers for addresses. */
constexpr int UNROLLED = KEY > 128 && SPAN > 16 ? 2 : 4;

/** Rows `first .. end` of a unit. */
struct RowWalk {
  int first, end;
  // Row 0 is of this query, or of the first chosen leader, counted from here.
  int origin;
  int queryCount;
  const unsigned short *chosen;

  __device__ int queryOf(int rho) const {
    if (VIEW != SELECTED) return origin + rho / UNIT;
    int leader = origin + chosen[rho / SHARED_ROWS];
    return leader * SHARING + rho % SHARED_ROWS / UNIT;
  }
};

/** Queries that see the key at a position: the first and the last. */
__device__ inline int seenFrom(const Call &u, int key) {
  return VIEW == COMPRESSED ? key * u.stride + u.length - 1 : key;
}
__device__ inline int seenTo(const Call &u, int key) {
  return VIEW == ATTENTION ? key + u.window - 1 : 1 << 30;
}

/** Starts to copy the rows from `base` on: q, dO and statistics. */
__device__ inline void copyRowStage(T *stage, const Call &u, const Sequence &s,
                                    const T *dO, const float2 *statistics,
                                    const RowWalk &shared, int head0, int base) {
  int thread = threadIdx.x % LOADERS;
  int first = threadIdx.x / LOADERS * LOADED;
  const RowWalk walk = shared;
  int firstRow = s.queryStart * u.heads + head0;
  auto rowOf = [&](int i) {
    int rho = base + first + i;
    int query = walk.queryOf(min(rho, walk.end - 1));
    // The last leader may have fewer queries.
    bool isRow = rho < walk.end && query < walk.queryCount;
    return isRow ? firstRow + query * u.heads + rho % UNIT : -1;
  };
  T *tileQ = stage + first * KEY;
  T *tileO = stage + N * KEY + first * VALUES;
  float2 *known = (float2 *)(stage + N * (KEY + VALUES)) + first;
  copyRows<KEY, LOADED, 0, WIDTH, LOADERS>(tileQ, thread, u.q, WIDTH, rowOf);
#if ROPE > 0
  copyRows<KEY, LOADED, WIDTH, ROPE, LOADERS>(tileQ, thread, u.qRope, ROPE, rowOf);
#endif
  copyRows<VALUES, LOADED, 0, VALUE, LOADERS>(tileO, thread, dO, VALUE, rowOf);
  if (thread < LOADED) {
    int row = rowOf(thread);
    cpAsync8(known + thread, statistics + row, row >= 0);
  }
}

/** Which of the leaders from `asked` on chose the block, in order; how many. */
__device__ inline int gather(const unsigned *bits, int asked, int endWord,
                             unsigned short *chosen) {
  __shared__ int counts[WARPS];
  int lane = threadIdx.x % 32;
  int warp = threadIdx.x / 32;
  int word = asked / 32 + threadIdx.x;
  unsigned left = word < endWord ? bits[word] : 0;
  int count = __popc(left);
  int before = count;
  for (int reach = 1; reach < 32; reach *= 2) {
    int other = __shfl_up_sync(0xffffffff, before, reach);
    if (lane >= reach) before += other;
  }
  // The list of the round before is done with.
  __syncthreads();
  if (lane == 31) counts[warp] = before;
  __syncthreads();
  before -= count;
  int total = 0;
  for (int w = 0; w < WARPS; w++) {
    if (w < warp) before += counts[w];
    total += counts[w];
  }
  for (; left; left &= left - 1) {
    chosen[before++] = 32 * threadIdx.x + __ffs(left) - 1;
  }
  __syncthreads();
  return total;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashBackwardKeys(Call u, const T *dO, const float2 *statistics,
                      const unsigned *chosenBy, int words, int blocks, T *dK,
                      T *dV, f32 *dKRope, f32 *partsK, f32 *partsV, int splits) {
  extern __shared__ int4 memory[];
  __shared__ unsigned short chosen[VIEW == SELECTED ? ASKED : 1];
  T *tileK = (T *)memory;
  T *tileV = LATENT ? tileK : tileK + ROWS * KEY;
  T *stages = tileK + ROWS * (KEY + (LATENT ? 0 : VALUES));

  // In shared memory, as the walk: the sums leave few registers.
  __shared__ Sequence s;
  __shared__ RowWalk walk;
  if (threadIdx.x == 0) s = u.sequences[blockIdx.z];
  __syncthreads();
  int keyHead = blockIdx.y;
  // Blocks at work at a time share their rows, which the L2 cache holds.
  int tiles = gridDim.x / splits;
  int split = blockIdx.x / tiles;
  int tile = blockIdx.x % tiles;
  int firstKey = tile * ROWS;
  int endKey = min(firstKey + ROWS, keyCount(u, s));
  int block = 0;
  if (VIEW == SELECTED) {
    constexpr int TILES = (BLOCK + ROWS - 1) / ROWS;
    block = tile / TILES;
    firstKey = block * BLOCK + tile % TILES * ROWS;
    endKey = min(min(firstKey + ROWS, (block + 1) * BLOCK), s.keyCount);
  }
  if (firstKey >= endKey) return;
  Source from = sourceOf(u, s, keyHead);
  auto keyOf = [&](int i) { return firstKey + i < endKey ? firstKey + i : -1; };
  copyRows<KEY, ROWS, 0, WIDTH, THREADS>(tileK, threadIdx.x, from.k,
                                         from.keyStride, keyOf);
#if ROPE > 0
  copyRows<KEY, ROWS, WIDTH, ROPE, THREADS>(tileK, threadIdx.x, from.kRope, ROPE,
                                            keyOf);
#endif
#if !LATENT
  copyRows<VALUES, ROWS, 0, VALUE, THREADS>(tileV, threadIdx.x, from.v,
                                            from.valueStride, keyOf);
  clearColumns<VALUES, ROWS, VALUE>(tileV);
#endif
  clearColumns<KEY, ROWS, WIDTH + ROPE>(tileK);
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    T *stage = stages + n * ROW_STAGE;
    clearColumns<KEY, N, WIDTH + ROPE>(stage);
    clearColumns<VALUES, N, VALUE>(stage + N * KEY);
  }
  cpAsyncCommit();
  cpAsyncWait<0>();
  __syncthreads();

  int warp = threadIdx.x / 32;
  int warpKey = warp % ROW_WARPS * 16 * ROW_TILES;
  int warpRow = warp / ROW_WARPS * SPAN;
  constexpr int VALUE_PITCH = LATENT ? KEY : VALUES;
  Lane<KEY> keyLane = firstOperand<KEY>(tileK + warpKey * KEY);
  Lane<VALUE_PITCH> valueLane =
      firstOperand<VALUE_PITCH>(tileV + warpKey * VALUE_PITCH);
  // Positions of the warp's keys.
  int leastKey = firstKey + warpKey;
  int mostKey = leastKey + 16 * ROW_TILES - 1;
  float scale = u.scale * LOG2_E;
  float sumsK[ROW_TILES][KEY / 8][4];
  float sumsV[ROW_TILES][VALUES / 8][4];
  clear(sumsK);
  clear(sumsV);

  int units = u.heads / u.keyHeads / UNIT;
  // Words of the bitmap, or rows, of this split.
  int wordsEach = (((s.queryCount + SHARING - 1) / SHARING + 31) / 32 + splits - 1) /
                  splits;
  int endWord = min((split + 1) * wordsEach, words);
  int firstAsked = max(split * wordsEach, block * BLOCK / SHARING / 32) * 32;
  int endAsked = VIEW == SELECTED ? endWord * 32 : firstAsked + 1;
  for (int unit = 0; unit < units; unit++) {
    int head0 = (keyHead * units + unit) * UNIT;
    for (int asked = firstAsked; asked < endAsked; asked += ASKED) {
      if (VIEW == SELECTED) {
        int list = head0 / (u.heads / u.lists);
        const unsigned *bits =
            chosenBy + (((i64)blockIdx.z * u.lists + list) * blocks + block) * words;
        int count = gather(bits, asked, endWord, chosen);
        if (threadIdx.x == 0) {
          walk = {0, count * SHARED_ROWS, asked, s.queryCount, chosen};
        }
      } else {
        // The tiles of the unit before are done with.
        __syncthreads();
        int first = min(seenFrom(u, firstKey), s.queryCount);
        int end = min(seenTo(u, endKey - 1), s.queryCount - 1) + 1;
        int total = max(end - first, 0) * UNIT;
        int each = ((total + N - 1) / N + splits - 1) / splits * N;
        if (threadIdx.x == 0) {
          walk = {split * each, min((split + 1) * each, total), first,
                  s.queryCount, chosen};
        }
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < STAGES - 1; n++) {
        copyRowStage(stages + n * ROW_STAGE, u, s, dO, statistics, walk, head0,
                     walk.first + n * N);
        cpAsyncCommit();
      }
      int stage = 0;
      for (int base = walk.first; base < walk.end; base += N) {
        awaitCopies<STAGES - 2>();
        int ahead = stage == 0 ? STAGES - 1 : stage - 1;
        copyRowStage(stages + ahead * ROW_STAGE, u, s, dO, statistics, walk,
                     head0, base + (STAGES - 1) * N);
        cpAsyncCommit();
        const T *tileQ = stages + stage * ROW_STAGE + warpRow * KEY;
        const T *tileO = stages + stage * ROW_STAGE + N * KEY + warpRow * VALUES;
        const float2 *known =
            (const float2 *)(stages + stage * ROW_STAGE + N * (KEY + VALUES)) +
            warpRow;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        int firstRow = base + warpRow;
        if (firstRow >= walk.end) continue;
        int firstQuery = walk.queryOf(firstRow);
        int lastQuery = walk.queryOf(min(firstRow + SPAN, walk.end) - 1);
        if (lastQuery < seenFrom(u, leastKey)) continue;
        if (firstQuery > seenTo(u, mostKey)) continue;

        float p[ROW_TILES][SPAN / 8][4];
        clear(p);
        auto key = [&](unsigned (&a)[4], int m, int k) {
          keyLane.load<false>(a, 16 * m, k);
        };
        multiplyRows<SPAN, KEY, UNROLLED>(p, key, secondOperand<KEY>(tileQ));
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            float log = known[8 * n + laneColumn() + e % 2].x * LOG2_E;
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
              p[m][n][e] = exp2Fast(p[m][n][e] * scale - log);
            }
          }
        }
        // Rows that are none have q, dO and statistics of 0: they add 0.
        if (firstQuery < seenFrom(u, mostKey) || lastQuery > seenTo(u, leastKey)) {
#pragma unroll
          for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
              int rho = firstRow + 8 * n + laneColumn() + e % 2;
              int query = rho < walk.end ? walk.queryOf(rho) : 1 << 30;
#pragma unroll
              for (int m = 0; m < ROW_TILES; m++) {
                int at = leastKey + 16 * m + laneRow() + e / 2 * 8;
                bool sees = query >= seenFrom(u, at) && query <= seenTo(u, at);
                if (!sees) p[m][n][e] = 0;
              }
            }
          }
        }
        multiplyColumns<VALUES, SPAN>(sumsV, p, secondTransposed<VALUES>(tileO));
        float dS[ROW_TILES][SPAN / 8][4];
        clear(dS);
        auto value = [&](unsigned (&a)[4], int m, int k) {
          valueLane.template load<false>(a, 16 * m, k);
        };
        multiplyRows<SPAN, VALUES, UNROLLED>(dS, value, secondOperand<VALUES>(tileO));
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            float delta = known[8 * n + laneColumn() + e % 2].y;
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
              dS[m][n][e] = p[m][n][e] * (dS[m][n][e] - delta);
            }
          }
        }
        multiplyColumns<KEY, SPAN>(sumsK, dS, secondTransposed<KEY>(tileQ));
      }
      cpAsyncWait<0>();
    }
  }

  // Two columns of a key's gradient, or of this split's part of it.
  auto write = [&](T *whole, f32 *parts, int width, i64 at, int c, float x,
                   float y) {
    if (splits > 1) {
      *(float2 *)(parts + (at * splits + split) * width + c) = make_float2(x, y);
    } else {
      *(unsigned *)(whole + at * width + c) = pair(x, y, T());
    }
  };
  auto placeOf = [&](int row) {
    return ((i64)keyStart(s) + firstKey + row) * u.keyHeads + keyHead;
  };
  emitRows<VALUES, VALUE>(sumsV, memory, [&](int row, int c, float x, float y) {
    if (firstKey + row < endKey) write(dV, partsV, VALUE, placeOf(row), c, x, y);
  });
  emitRows<KEY, WIDTH + ROPE>(sumsK, memory, [&](int row, int c, float x, float y) {
    if (firstKey + row >= endKey) return;
    i64 at = placeOf(row);
    x *= u.scale;
    y *= u.scale;
    if (c < WIDTH) {
      write(dK, partsK, WIDTH, at, c, x, y);
    } else {
      float *to = dKRope + (at * splits + split) * ROPE + c - WIDTH;
      *(float2 *)to = make_float2(x, y);
    }
  });
}
