// As `flashBackwardBlocks`, on Hopper: the gradients of selected attention by a
// walk over the lists that have a block. Scores are transposed: a warpgroup has
// the block's 64 keys as the rows of its products, and 64 rows of lists pass.
// Items, sums over keys and parts of dQ lie as those of flash-backward-blocks.cu,
// whose other kernels stand before and behind this one.
#include "hopper.cuh"
#include "block-items.cuh"

static_assert(GROUPS == 1 && BLOCK == ROWS && N == 64, "a product's rows");
static_assert(64 % (16 * LIST_PARTS) == 0 && ITEM % 4 == 0, "whole lists");
static_assert(KEY % 32 == 0 && KEY <= 128 && VALUE <= 128, "what registers hold");

/** Registers of a thread that computes, and of one that copies. */
constexpr int SUMMING = KEY + VALUE > 208 ? 232 : 208;
constexpr int SERVING = 256 - SUMMING;
static_assert(BLOCKS == 2 && GROUP * BLOCKS * (SUMMING + SERVING) <= 65536,
              "two blocks of threads a multiprocessor");

/** Elements of a stage: rows of q and of dO. */
constexpr int QUERIES_SIZE = tileSize(N, KEY);
constexpr int STAGE_SIZE = QUERIES_SIZE + tileSize(N, VALUE);
constexpr int LIST_ROWS = 16 * LIST_PARTS;
/** Threads that copy a chunk's row, 16 bytes each. */
constexpr int PIECES = 8;
static_assert(GROUP / PIECES == 16, "a part of a list at a time");

/** Of a list that has the block: which it is, and at which place. */
struct __align__(4) Entry {
  unsigned short place, leader;

  __device__ static Entry of(unsigned both) {
    return {(unsigned short)both, (unsigned short)(both >> 16)};
  }
};

/** What of shared memory is no tile. */
struct Shared {
  Mbarrier keys, rows[STAGES], rowsFree[STAGES];
  /** Those of the item, filled up to whole rounds. */
  Entry entries[ITEM];
  /** The rows' LSE, then their dO . o: of two columns at a time. */
  __align__(16) float known[STAGES][2 * N];
};

/** The rows of an item: of its lists, one behind another. */
struct ItemRows {
  Sequence s;
  int firstLeader, head0, end;

  /** The number of row i of a list of leader `firstLeader` among all rows. */
  __device__ i64 numberOf(const Call &u, int i) const {
    int query = s.queryStart + firstLeader * SHARING + i / UNIT;
    return (i64)query * u.heads + head0 + i % UNIT;
  }
  __device__ int queryOf(const Shared &shared, int rho) const {
    int leader = firstLeader + shared.entries[rho / LIST_ROWS].leader;
    return leader * SHARING + rho % LIST_ROWS / UNIT;
  }
  /** The last leader may have fewer queries. */
  __device__ bool has(const Shared &shared, int rho) const {
    return rho < end && queryOf(shared, rho) < s.queryCount;
  }
};

/**
 * Starts to copy the thread's pieces of a row to columns FIRST .. of a tile:
 * `to` is its row there, `from` its piece of the first chunk.
 */
template <int FIRST, int COLUMNS>
__device__ inline void copyPieces(T *to, const T *from, bool valid) {
  int piece = threadIdx.x % PIECES;
  int row = threadIdx.x / PIECES;
#pragma unroll
  for (int c = 0; c < COLUMNS; c += 64) {
    if (c + 64 > COLUMNS && c + 8 * piece >= COLUMNS) break;
    int at = FIRST + c + 8 * piece;
    // Whole chunks: the place is the thread's, and all else known here.
    int place = FIRST % 64 == 0 ? (FIRST + c) / 64 * (64 * N) + (piece ^ row % 8) * 8
                                : at / 64 * (64 * N) + (at / 8 ^ row) % 8 * 8;
    cpAsync16(to + place, from + c, valid);
  }
}

/** Starts to copy the block's keys and values; all threads share the work. */
__device__ inline void copyBlock(const Call &u, const Sequence &s, int keyHead,
                                 int firstKey, T *tileK, T *tileV) {
  Source from = sourceOf(u, s, keyHead);
  int piece = threadIdx.x % PIECES * 8;
#pragma unroll
  for (int n = 0; n < BLOCK; n += THREADS / PIECES) {
    int i = n + threadIdx.x / PIECES;
    i64 key = firstKey + i;
    bool isKey = key < s.keyCount;
    copyPieces<0, WIDTH>(tileK + i * 64, from.k + key * from.keyStride + piece,
                         isKey);
#if ROPE > 0
    copyPieces<WIDTH, ROPE>(tileK + i * 64, from.kRope + key * ROPE + piece, isKey);
#endif
#if !LATENT
    copyPieces<0, VALUE>(tileV + i * 64, from.v + key * from.valueStride + piece,
                         isKey);
#endif
  }
  cpAsyncCommit();
}

/**
 * Copies the rows, 64 a stage. A thread has a piece of row `i` of each part of a
 * list: from list to list only the leader changes.
 */
__device__ inline void copyAll(const Call &u, const ItemRows &rows, const T *dO,
                               const float2 *statistics, T *stages,
                               Shared &shared) {
  int thread = threadIdx.x % GROUP;
  int i = thread / PIECES;
  i64 row = rows.numberOf(u, i);
  int piece = thread % PIECES * 8;
  const T *ownQ = u.q + row * WIDTH + piece;
  const T *ownO = dO + row * VALUE + piece;
#if ROPE > 0
  const T *ownRope = u.qRope + row * ROPE + piece;
#endif
  int leaderRows = SHARING * u.heads;
  // Of its row's two statistics the thread has one.
  const float *ownKnown =
      &statistics[rows.numberOf(u, thread % N % LIST_ROWS)].x + thread / N;
  int fullEnd = rows.end;
  // Where the last leader lacks queries, its round is not whole.
  if (!rows.has(shared, rows.end - 1)) fullEnd -= LIST_ROWS;
  auto copyRound = [&](int base, T *stage, float *known, auto isWhole) {
    // All leaders before the first copy: a load may not pass one.
    int leaders[N / LIST_ROWS];
#pragma unroll
    for (int n = 0; n < N / LIST_ROWS; n++) {
      leaders[n] = shared.entries[base / LIST_ROWS + n].leader;
    }
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      int leader = leaders[n / LIST_ROWS];
      int part = n % LIST_ROWS;
      int at = leader * leaderRows + part / UNIT * u.heads + part % UNIT;
      bool valid = isWhole() || rows.has(shared, base + n + i);
      T *to = stage + (n + i) * 64;
      copyPieces<0, WIDTH>(to, ownQ + (i64)at * WIDTH, valid);
#if ROPE > 0
      copyPieces<WIDTH, ROPE>(to, ownRope + (i64)at * ROPE, valid);
#endif
      copyPieces<0, VALUE>(to + QUERIES_SIZE, ownO + (i64)at * VALUE, valid);
    }
    int rho = base + thread % N;
    int leader = shared.entries[rho / LIST_ROWS].leader;
    cpAsync4(known + thread, ownKnown + 2 * (i64)leader * leaderRows,
             isWhole() || rows.has(shared, rho));
  };
  // Of the block the thread's pieces come first.
  Copies copies = {&shared.keys};
  Turn turn = {0, 0};
  for (int base = 0; base < rows.end; base += N) {
    copies.claim(&shared.rowsFree[turn.stage], turn.parity);
    T *stage = stages + turn.stage * STAGE_SIZE;
    float *known = shared.known[turn.stage];
    if (base + N <= fullEnd) {
      copyRound(base, stage, known, [] { return true; });
    } else {
      copyRound(base, stage, known, [] { return false; });
    }
    copies.commit(&shared.rows[turn.stage]);
    turn.next();
  }
  copies.announce<0>();
}

/**
 * What an item adds to a row of f32 sums, where no other one adds; `at(c)`: where
 * columns from c on are. Lanes change halves, so that each has four neighbours.
 */
template <int COLUMNS, typename At>
__device__ inline void addRow(const float (&x)[COLUMNS][4], int half,
                              float scale, bool isKey, At at) {
  bool isOdd = threadIdx.x & 1;
  int column = laneColumn() / 4 * 4 + (isOdd ? 8 : 0);
  float4 fours[COLUMNS / 2];
#pragma unroll
  for (int n = 0; n < COLUMNS; n += 2) {
    float2 first = make_float2(x[n][2 * half] * scale, x[n][2 * half + 1] * scale);
    float2 second = make_float2(x[n + 1][2 * half] * scale,
                                x[n + 1][2 * half + 1] * scale);
    float2 given = isOdd ? first : second;
    float2 taken = make_float2(__shfl_xor_sync(0xffffffff, given.x, 1),
                               __shfl_xor_sync(0xffffffff, given.y, 1));
    float2 low = isOdd ? taken : first;
    float2 high = isOdd ? second : taken;
    fours[n / 2] = make_float4(low.x, low.y, high.x, high.y);
  }
  if (!isKey) return;
#pragma unroll
  for (int n = 0; n < COLUMNS; n += 2) {
    addFour((float4 *)at(8 * n + column), fours[n / 2]);
  }
}

/**
 * An item's sums as `sumItems` has them in registers: there a warp has 32 keys,
 * and of columns every other 16.
 */
template <int COLUMNS>
__device__ inline void keepSums(float4 *to, const float (&x)[COLUMNS][4]) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
    to[(n / 4 * 2 + n % 2) * SUMMERS + n / 2 % 2 * (SUMMERS / 2)] =
        make_float4(x[n][0], x[n][1], x[n][2], x[n][3]);
  }
}

/** The warp's part of dQ. */
template <int COLUMNS>
__device__ inline void keepPart(uint4 *to, const float (&x)[COLUMNS][4]) {
#pragma unroll
  for (int n = 0; n < COLUMNS / 2; n++) {
    unsigned four[4];
    operandOf(four, x, n);
    __stcs(to + n % 2 * HALF_PART + n / 2 * 32,
           make_uint4(four[0], four[1], four[2], four[3]));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    hopperBackwardBlocks(Call u, const T *dO, const float2 *statistics,
                         uint4 *parts, f32 *sumsK, f32 *sumsV, f32 *sumsKRope,
                         float4 *further, const Item *items,
                         const int *itemCount, const unsigned *entries,
                         int firstLeader, int leaders, int blocks) {
  extern __shared__ int4 memory[];
  __shared__ Shared shared;
  // Both at once: there is room for as many items as blocks of threads.
  Item item = items[blockIdx.x];
  if (blockIdx.x >= *itemCount) return;
  int block = item.row % blocks;
  int list = item.row / blocks;
  int keyHead = list % u.lists;
  int firstKey = block * BLOCK;
  ItemRows rows = {u.sequences[list / u.lists], firstLeader, keyHead * UNIT,
                   item.count * LIST_ROWS};
  T *tileK = tilesIn(memory);
  T *tileV = LATENT ? tileK : tileK + tileSize(BLOCK, KEY);
  T *tileS = tileV + tileSize(BLOCK, LATENT ? KEY : VALUE);
  T *stages = tileS + BLOCK * N;
  if (threadIdx.x == 0) {
    // All warps; those that copy; those that compute.
    initBarrier(&shared.keys, 8);
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&shared.rows[n], 4);
      initBarrier(&shared.rowsFree[n], 4);
    }
  }
  copyBlock(u, rows.s, keyHead, firstKey, tileK, tileV);
  for (int i = threadIdx.x; i < (item.count + 3) / 4 * 4; i += THREADS) {
    shared.entries[i] = Entry::of(i < item.count ? entries[item.first + i] : 0);
  }
  __syncthreads();
  if (warpgroup() == 1) {
    giveRegisters<SERVING>();
    copyAll(u, rows, dO, statistics, stages, shared);
    return;
  }
  takeRegisters<SUMMING>();

  int warp = threadIdx.x / 32;
  // Of the block's keys the lane has this one and the one 8 further.
  int key = 16 * warp + laneRow();
  float scale = u.scale * LOG2_E;
  unsigned tiles = (unsigned)__cvta_generic_to_shared(tileK) / 16;
  constexpr int V_AT = LATENT ? 0 : tileSize(BLOCK, KEY) / 8;
  constexpr int S_AT = V_AT + tileSize(BLOCK, LATENT ? KEY : VALUE) / 8;
  constexpr int Q_AT = S_AT + BLOCK * N / 8;
  auto placeOfTile = [&](int at) { return placeAt<64>(tiles + at); };
  // Where a lane's row of four matrices of dS goes: of 16 keys two pieces each.
  int lane = threadIdx.x % 32;
  unsigned spot = (16 * warp + lane % 16) * 64 + (lane / 16 ^ lane % 8) * 8;
  uint4 *ownParts = parts +
                    (i64)list * leaders * u.count * LIST_PARTS * 2 * HALF_PART +
                    threadIdx.x % 32;
  float dK[KEY / 8][4];
  float dV[VALUE / 8][4];
  clear(dK);
  clear(dV);
  // Scores and dP, of keys by rows.
  float x[N / 8][4], y[N / 8][4];
  Turn turn = {0, 0}, before = turn;
  cpAsyncWait<0>();
  fenceProducts();
  arriveWarp(&shared.keys);
  await(&shared.keys, 0);
  for (int base = 0; base < rows.end; base += N) {
    MatrixPlace placeQ = placeOfTile(Q_AT + turn.stage * (STAGE_SIZE / 8));
    MatrixPlace placeO = placeQ + QUERIES_SIZE / 8;
    await(&shared.rows[turn.stage], turn.parity);
    wgmmaFence();
    multiplyTiles<KEY, BLOCK, N>(x, placeOfTile(0), placeQ);
    wgmmaCommit();
    multiplyTiles<VALUE, BLOCK, N>(y, placeOfTile(V_AT), placeO);
    wgmmaCommit();

    // LSE, then dO . o: on their way while products are waited for, else they
    // come one by one.
    float2 known[N / 8];
    loadColumns(known, shared.known[turn.stage]);
    wgmmaWait<1>();
    hold(x);
    weighColumns(x, known, scale);
    // Queries only rise. Rows that are none have q, dO and statistics of 0: they
    // add 0.
    if (rows.queryOf(shared, base) < firstKey + BLOCK - 1) {
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int last = rows.queryOf(shared, base + 8 * n + laneColumn() + e) - firstKey;
          if (key > last) x[n][e] = 0;
          if (key + 8 > last) x[n][2 + e] = 0;
        }
      }
    }
    unsigned weights[N / 16][4];
    operandsOf(weights, x);
    hold(weights);
    hold(dV);
    wgmmaFence();
    multiplyWeights(dV, weights, placeO, 1);
    wgmmaCommit();

    loadColumns(known, shared.known[turn.stage] + N);
    wgmmaWait<1>();
    hold(y);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
      float2 delta = known[n];
      x[n][0] *= y[n][0] - delta.x;
      x[n][1] *= y[n][1] - delta.y;
      x[n][2] *= y[n][2] - delta.x;
      x[n][3] *= y[n][3] - delta.y;
    }
    wgmmaWait<0>();
    hold(weights);
    hold(dV);
    // Keys by rows, a key's rows side by side, where no warp reads any more.
    if (base > 0) await(&shared.rowsFree[before.stage], before.parity);
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
      unsigned four[4];
      operandOf(four, x, k);
      storeMatrices(tileS + (spot ^ 16 * k), four);
    }
    fenceProducts();
    meetAt(1, GROUP);
    hold(dK);
    wgmmaFence();
    float dQ[KEY / 8][4];
    multiplyTransposed<BLOCK>(dQ, placeOfTile(S_AT), placeOfTile(0));
    wgmmaCommit();
    addProduct<N, BLOCK>(dK, placeOfTile(S_AT), placeQ);
    wgmmaCommit();
    Entry entry = shared.entries[(base + 16 * warp) / LIST_ROWS];
    i64 part = ((i64)entry.leader * u.count + entry.place) * LIST_PARTS +
               warp % LIST_PARTS;
    uint4 *to = ownParts + part * 2 * HALF_PART;
    wgmmaWait<1>();
    hold(dQ);
    if (base + 16 * warp < rows.end) keepPart(to, dQ);
    wgmmaWait<0>();
    hold(dK);
    arriveWarp(&shared.rowsFree[turn.stage]);
    before = turn;
    turn.next();
  }

  if (item.further < 0) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int at = firstKey + key + 8 * half;
      bool isKey = at < rows.s.keyCount;
      i64 row = (i64)(rows.s.keyStart + at) * u.keyHeads + keyHead;
      addRow(dK, half, u.scale, isKey, [&](int c) {
        return c < WIDTH ? sumsK + row * WIDTH + c
                         : sumsKRope + row * ROPE + c - WIDTH;
      });
      addRow(dV, half, 1, isKey, [&](int c) { return sumsV + row * VALUE + c; });
    }
    return;
  }
  float4 *to = further + (i64)item.further * ITEM_WORDS * SUMMERS +
               warp % 2 * (ITEM_WORDS / 2 * SUMMERS) + warp / 2 * 32 +
               threadIdx.x % 32;
  keepSums(to, dK);
  keepSums(to + KEY / 16 * SUMMERS, dV);
}
