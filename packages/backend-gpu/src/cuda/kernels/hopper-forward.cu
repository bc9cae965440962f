// o = softmax(scores) v as flash-forward.cu, for dense views on Hopper. While a
// warpgroup weighs the scores of one tile of keys, the tensor cores have its
// next scores and its sums of the tile before, and the other one's.
#include "hopper.cuh"

/** As in flash-forward.cu. */
#define LAG 8
/** Barriers of the block: whose turn it is to start products. */
#define FIRST_TURN 1
/** Registers of scores, weights, sums and queries, which leave enough. */
#define HELD_MOST 192

/** Elements of a stage. */
constexpr int KEYS_SIZE = tileSize(N, KEY);
constexpr int VALUES_SIZE = LATENT ? 0 : tileSize(N, VALUE);

/**
 * Whether queries stay in registers: products read only keys then, and the next
 * queries come while these are multiplied. Windows and masks need registers.
 */
constexpr bool HOLDS =
    VIEW == COMPRESSED && N * 3 / 4 + VALUES / 2 + KEY / 4 <= HELD_MOST;

struct Barriers {
  Mbarrier queries, queriesFree;
  Mbarrier keys[STAGES], keysFree[STAGES];
  Mbarrier values[STAGES], valuesFree[STAGES];
};

#if BOXED
/** Queries, keys and values as boxes. */
struct Maps {
  Boxes q, k, v;
#if ROPE > 0
  Boxes qRope, kRope;
#endif
};
#else
struct Maps {};
#endif

/** One structure: only then is it known where boxes lie. */
struct Arguments {
#if BOXED
  Maps maps;
#endif
  Call u;
  T *o;
  float *lse;
  int count, tiles, sequences;
};

/** The keys and values of a row tile's walk, by tiles. */
struct KeyTiles {
  Source from;
  /** The row of key 0, how many keys there are, and the end of those seen. */
  int start, there, end;
  int head;

  __device__ KeyTiles(const Call &u, const DenseTile &tile)
      : start(keyStart(tile.s)), there(keyCount(u, tile.s)), end(tile.end),
        head(tile.head0 / (u.heads / u.keyHeads)) {
    from = sourceOf(u, tile.s, head);
  }
  /** Whole tiles may have keys that no row sees, but none of other sequences. */
  __device__ bool isWhole(int base) const { return base + N <= there; }

  __device__ void copyKeys(Copies &copies, const Maps &maps, T *stage, int base,
                           Mbarrier *full) const {
#if BOXED
    if (isWhole(base)) {
      copies.take(full, KEYS_SIZE, [&] {
        copyBoxes<N, 0, WIDTH>(stage, maps.k, head, start + base, full);
#if ROPE > 0
        copyBoxes<N, WIDTH, ROPE>(stage, maps.kRope, 0, start + base, full);
#endif
      });
      return;
    }
#endif
    copyTile<N, 0, WIDTH>(stage, from.k, from.keyStride, base, end);
#if ROPE > 0
    copyTile<N, WIDTH, ROPE>(stage, from.kRope, ROPE, base, end);
#endif
    copies.commit(full);
  }
  __device__ void copyValues(Copies &copies, const Maps &maps, T *stage,
                             int base, Mbarrier *full) const {
#if BOXED
    if (isWhole(base)) {
      copies.take(full, VALUES_SIZE, [&] {
        copyBoxes<N, 0, VALUE>(stage, maps.v, head, start + base, full);
      });
      return;
    }
#endif
    copyTile<N, 0, VALUE>(stage, from.v, from.valueStride, base, end);
    copies.commit(full);
  }
};

__device__ inline void copyQueries(const Call &u, Copies &copies,
                                   const Maps &maps, T *tileQ,
                                   const DenseTile &tile, Mbarrier *full) {
  QueryRows rows = tile.rows(u);
#if BOXED
  if (rows.count >= ROWS) {
    copies.take(full, tileSize(ROWS, KEY), [&] {
      int query = tile.s.queryStart + tile.row0 / UNIT;
      copyBoxes<ROWS, 0, WIDTH>(tileQ, maps.q, tile.head0, query, full);
#if ROPE > 0
      copyBoxes<ROWS, WIDTH, ROPE>(tileQ, maps.qRope, tile.head0, query, full);
#endif
    });
    return;
  }
#endif
  copyChunks<ROWS, 0, WIDTH>(tileQ, u.q, WIDTH, rows);
#if ROPE > 0
  copyChunks<ROWS, WIDTH, ROPE>(tileQ, u.qRope, ROPE, rows);
#endif
  copies.commit(full);
}

__device__ inline void copyAll(const Call &u, const Maps &maps, T *tileQ,
                               T *stagesK, T *stagesV, Barriers &barriers,
                               int count, int tiles, int sequences) {
  Copies copies = {0};
  Turn turn = {0, 0};
  unsigned parity = 0;
  clearBehind<ROWS, WIDTH + ROPE>(tileQ);
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    clearBehind<N, WIDTH + ROPE>(stagesK + n * KEYS_SIZE);
  }
  auto copyKeys = [&](const KeyTiles &keys, int base) {
    copies.claim(&barriers.keysFree[turn.stage], turn.parity);
    keys.copyKeys(copies, maps, stagesK + turn.stage * KEYS_SIZE, base,
                  &barriers.keys[turn.stage]);
    turn.next();
  };
#if !LATENT
  Turn turnV = {0, 0};
  auto copyValues = [&](const KeyTiles &keys, int base) {
    copies.claim(&barriers.valuesFree[turnV.stage], turnV.parity);
    keys.copyValues(copies, maps, stagesV + turnV.stage * VALUES_SIZE, base,
                    &barriers.values[turnV.stage]);
    turnV.next();
  };
#endif
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    DenseTile tile;
    if (!tile.open(u, number, tiles, sequences)) continue;
    KeyTiles keys(u, tile);
    // Keys go before the values of the tile before. Queries come behind them:
    // where they are not held, there is no place for them until all others have
    // been multiplied.
    if (tile.first < tile.end) copyKeys(keys, tile.first);
    copies.claim(&barriers.queriesFree, parity);
    copyQueries(u, copies, maps, tileQ, tile, &barriers.queries);
    parity ^= 1;
    for (int base = tile.first; base < tile.end; base += N) {
      if (base + N < tile.end) copyKeys(keys, base + N);
#if !LATENT
      copyValues(keys, base);
#endif
    }
  }
  copies.announce<0>();
}

/** Which of a tile's keys the lists of a lane's two rows have: no lists. */
struct NoMasks {
  __device__ void set(const Call &, const DenseTile &, int) {}
  __device__ void load(int) {}
};

#if VIEW == MASKED
static_assert(N == 128, "a byte of a mask");

struct LaneMasks {
  const unsigned char *lists[2];
  unsigned bits[2];

  __device__ void set(const Call &u, const DenseTile &tile, int row) {
    int past = tile.past();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // Rows that are none have the last query's list.
      int query = (tile.row0 + row + 8 * half) / UNIT;
      int t = past + min(query, tile.s.queryCount - 1);
      int leader = t / SHARING - past / SHARING;
      lists[half] = masksOf(u, tile.s, leader, tile.head0);
    }
  }
  /** On their way while scores are waited for. */
  __device__ void load(int base) {
#pragma unroll
    for (int half = 0; half < 2; half++) bits[half] = lists[half][base / N];
  }
};
typedef LaneMasks Masks;
#else
typedef NoMasks Masks;
#endif

/** A tile of rows, and what a lane knows of its own two. */
struct OwnRows {
  DenseTile tile;
  LaneRows rows;
  Whole whole;
  Masks masks;
};

/** The block's tiles of rows, one by one. */
struct RowTiles {
  int count, tiles, sequences, round;

  __device__ bool isLast() const { return turnOf(round) >= count; }
  /** Whether the next one has rows. */
  __device__ bool next(const Call &u, OwnRows &own, int group, int row) {
    if (isLast() || !own.tile.open(u, turnOf(round++), tiles, sequences)) {
      return false;
    }
    own.rows.set(u, own.tile, row);
    own.whole.set(u, own.tile, 64 * group);
    own.masks.set(u, own.tile, row);
    return true;
  }
};

/** A lane's rows of a softmax that goes on. */
struct Softmax {
  float most[2], total[2], fade[2];

  /**
   * scores to weights relative to the rows' references; whether a reference of
   * the warp has moved, and `fade` corrects the sums.
   */
  template <int COLUMNS>
  __device__ bool weigh(float (&scores)[COLUMNS][4], float scale,
                        const NoMasks &) {
    bool fades = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = rowMost(scores, half) * scale;
      bool rises = top > most[half] + LAG;
      fades = fades || rises;
      fade[half] = rises ? exp2Fast(most[half] - top) : 1;
      if (rises) most[half] = top;
      // Where nothing was seen yet every weight is 2^-inf.
      float reference = most[half] == -INFINITE ? 0 : most[half];
      float sum = 0;
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &p = scores[n][2 * half + e];
          p = exp2Fast(p * scale - reference);
          sum += p;
        }
      }
      total[half] = total[half] * fade[half] + sum;
    }
    return __any_sync(0xffffffff, fades);
  }

#if VIEW == MASKED
  /**
   * The same of keys in the rows' lists; the others' weights are 0. Of 16 keys
   * that no row of the warp has, nothing is computed: mostly all have one list.
   */
  template <int COLUMNS>
  __device__ bool weigh(float (&scores)[COLUMNS][4], float scale,
                        const LaneMasks &masks) {
    unsigned some = warpBits(masks.bits[0] | masks.bits[1]);
    float tops[2] = {-INFINITE, -INFINITE};
#pragma unroll
    for (int k = 0; k < COLUMNS / 2; k++) {
      if (!(some >> k & 1)) continue;
#pragma unroll
      for (int e = 0; e < 8; e++) {
        int half = e / 2 % 2;
        float &score = scores[2 * k + e / 4][e % 4];
        if (!(masks.bits[half] >> k & 1)) score = -INFINITE;
        tops[half] = fmaxf(tops[half], score);
      }
    }
    bool fades = false;
    float references[2], sums[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = laneMost(tops[half]) * scale;
      bool rises = top > most[half] + LAG;
      fades = fades || rises;
      fade[half] = rises ? exp2Fast(most[half] - top) : 1;
      if (rises) most[half] = top;
      references[half] = most[half] == -INFINITE ? 0 : most[half];
    }
#pragma unroll
    for (int k = 0; k < COLUMNS / 2; k++) {
      bool isSeen = some >> k & 1;
      if (isSeen) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
          int half = e / 2 % 2;
          float &p = scores[2 * k + e / 4][e % 4];
          p = exp2Fast(p * scale - references[half]);
          sums[half] += p;
        }
      } else {
#pragma unroll
        for (int e = 0; e < 8; e++) scores[2 * k + e / 4][e % 4] = 0;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      total[half] = total[half] * fade[half] + sums[half];
    }
    return __any_sync(0xffffffff, fades);
  }
#endif
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperForward(const __grid_constant__ Arguments given) {
#if BOXED
  const Maps &maps = given.maps;
#else
  constexpr Maps maps = {};
#endif
  const Call &u = given.u;
  extern __shared__ int4 memory[];
  __shared__ Barriers barriers;
  T *tileQ = tilesIn(memory);
  T *stagesK = tileQ + tileSize(ROWS, KEY);
  T *stagesV = LATENT ? stagesK : stagesK + STAGES * KEYS_SIZE;
  constexpr int STAGE_V = LATENT ? KEYS_SIZE : VALUES_SIZE;
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy; warps that compute.
    initBarrier(&barriers.queries, 4);
    initBarrier(&barriers.queriesFree, 4 * GROUPS);
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&barriers.keys[n], 4);
      initBarrier(&barriers.keysFree[n], 4 * GROUPS);
      initBarrier(&barriers.values[n], 4);
      initBarrier(&barriers.valuesFree[n], 4 * GROUPS);
    }
    // Boxes count there, too.
    fenceProducts();
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING>();
    copyAll(u, maps, tileQ, stagesK, stagesV, barriers, given.count, given.tiles,
            given.sequences);
    return;
  }
  takeRegisters<COMPUTING>();

  int row = 64 * group + threadIdx.x % GROUP / 32 * 16 + laneRow();
  float scale = u.scale * LOG2_E;
  MatrixPlace placeQ = placeOf<ROWS>(tileQ) + 64 * group * 128 / 16;
  MatrixPlace placeK = placeOf<N>(stagesK);
  MatrixPlace placeV = placeOf<N>(stagesV);
  Turn turn = {0, 0};
  unsigned parity = 0;
  // Whose products are started first alternates.
  if (group == GROUPS - 1) arriveAt(FIRST_TURN, 2 * GROUP);
  RowTiles all = {given.count, given.tiles, given.sequences, 0};
  OwnRows own;
  bool isOpen = false;
  while (true) {
    while (!isOpen && !all.isLast()) isOpen = all.next(u, own, group, row);
    if (!isOpen) break;
    const DenseTile tile = own.tile;
    isOpen = false;
    Softmax softmax = {{-INFINITE, -INFINITE}, {0, 0}, {1, 1}};
    // Sums of columns behind the values are of no use.
    float sums[VALUES / 8][4];
    await(&barriers.queries, parity);
    unsigned queries[KEY / 16][4];
    if (HOLDS) {
      loadRows<ROWS, KEY>(queries, tileQ, threadIdx.x / 32 * 16);
      // Boxes come to where these were read.
      fenceProducts();
      arriveWarp(&barriers.queriesFree);
    }
    if (tile.first < tile.end) {
      float scores[N / 8][4];
      unsigned weights[N / 16][4];
      auto startScores = [&] {
        MatrixPlace keys = placeK + turn.stage * (KEYS_SIZE * 2 / 16);
        if (HOLDS) {
          multiplyHeld<KEY, N>(scores, queries, keys);
        } else {
          multiplyTiles<KEY, ROWS, N>(scores, placeQ, keys);
        }
        wgmmaCommit();
      };
      auto awaitValues = [&](const Turn &at) {
        if (!LATENT) await(&barriers.values[at.stage], at.parity);
      };
      auto startSums = [&](const Turn &at, int more) {
        multiplyWeights(sums, weights, placeV + at.stage * (STAGE_V * 2 / 16),
                        more);
        wgmmaCommit();
      };
      auto free = [&](const Turn &at) {
        arriveWarp(LATENT ? &barriers.keysFree[at.stage]
                          : &barriers.valuesFree[at.stage]);
      };
      own.masks.load(tile.first);
      await(&barriers.keys[turn.stage], turn.parity);
      if (HOLDS) hold(queries);
      wgmmaFence();
      startScores();
      wgmmaWait<0>();
      hold(scores);
      if (!LATENT) arriveWarp(&barriers.keysFree[turn.stage]);
      if (!own.whole.has(tile.first)) {
        own.rows.hide(scores, -INFINITE, tile.first);
      }
      softmax.weigh(scores, scale, own.masks);
      operandsOf(weights, scores);
      Turn before = turn;
      turn.next();
      for (int base = tile.first + N; base < tile.end; base += N) {
        own.masks.load(base);
        await(&barriers.keys[turn.stage], turn.parity);
        // Behind products of held queries the compiler has no wait begin.
        if (HOLDS) awaitValues(before);
        meetAt(FIRST_TURN + group, 2 * GROUP);
        if (HOLDS) hold(queries);
        hold(weights);
        hold(sums);
        wgmmaFence();
        startScores();
        if (!HOLDS) {
          awaitValues(before);
          wgmmaFence();
        }
        startSums(before, base > tile.first + N);
        arriveAt(FIRST_TURN + 1 - group, 2 * GROUP);
        wgmmaWait<1>();
        hold(scores);
        if (!LATENT) arriveWarp(&barriers.keysFree[turn.stage]);
        if (!own.whole.has(base)) own.rows.hide(scores, -INFINITE, base);
        bool fades = softmax.weigh(scores, scale, own.masks);
        // In branches: else the compiler waits first, and weighs behind it.
        if (fades) {
          wgmmaWait<0>();
          hold(sums);
#pragma unroll
          for (int n = 0; n < VALUES / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) sums[n][e] *= softmax.fade[e / 2];
          }
        } else {
          wgmmaWait<0>();
          hold(sums);
        }
        hold(weights);
        free(before);
        operandsOf(weights, scores);
        before = turn;
        turn.next();
      }
      if (!HOLDS) arriveWarp(&barriers.queriesFree);
      awaitValues(before);
      hold(weights);
      hold(sums);
      wgmmaFence();
      startSums(before, tile.first + N < tile.end);
      // Under them: what comes next. Beside held queries the compiler would have
      // all products wait for one another.
      if (!HOLDS) isOpen = all.next(u, own, group, row);
      wgmmaWait<0>();
      hold(sums);
      free(before);
    } else {
      if (!HOLDS) arriveWarp(&barriers.queriesFree);
      clear(sums);
    }
    parity ^= 1;

#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = softmax.total[half];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      i64 index = tile.rows(u).numberOf(row + 8 * half);
      bool isRow = index >= 0;
      T *to = given.o + (isRow ? index * VALUE : 0);
      emitRow(sums, half, sum == 0 ? 0 : 1 / sum,
              [&](int c, unsigned low, unsigned high) {
                storeFourIf(isRow && c < VALUE, to + c, low, high);
              });
      if (laneColumn() > 0 || !isRow) continue;
      given.lse[index] =
          sum == 0 ? -INFINITE : softmax.most[half] / LOG2_E + logf(sum);
    }
  }
  // Nobody leaves while a turn is still given.
  if (group == 0) meetAt(FIRST_TURN, 2 * GROUP);
}
