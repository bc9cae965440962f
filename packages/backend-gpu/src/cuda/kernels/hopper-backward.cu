// dQ, dK and dV of dense views in one walk on Hopper: scores and dP are computed
// once. A block of threads keeps the gradients of 128 keys in registers and
// walks over the rows that see them; its part of dQ goes to device memory, where
// a row's parts are added in the order of the keys: BULK, by way of shared memory,
// else from registers. See "One walk for all gradients" of the kernel notebook.
#include "hopper.cuh"

static_assert(ROWS == 128 && N == 64 && KEY <= 128, "what registers hold");

/**
 * Tiles of q are in use until the next one's step ends, those of dO in their own
 * only: they come in rings of unlike length. Powers of two, as a tile's place in
 * a ring is made of its number.
 */
#define GRADIENT_STAGES 2
static_assert((STAGES & (STAGES - 1)) == 0, "a power of two");
/** Elements of a tile of q, of dO, and of the gradients of a tile's scores. */
constexpr int QUERIES_SIZE = tileSize(N, KEY);
constexpr int GRADIENTS_SIZE = tileSize(N, VALUE);
constexpr int SCORES_SIZE = ROWS * N;
/** Columns of dQ that a warpgroup computes: a chunk of the keys. */
constexpr int CHUNK = 64;
/** Its sums of a tile of rows, by four. */
constexpr int PART = N * CHUNK / 4;
constexpr int PARTS = KEY > CHUNK ? 2 : 1;

/** Registers of a thread that computes, and of one that does not. */
constexpr int SUMMING = KEY + VALUES > 208 ? 240 : 216;
constexpr int SERVING = KEY + VALUES > 208 ? 24 : 72;
static_assert(GROUPS * SUMMING + SERVING <= 65536 / GROUP, "a block's share");

/** Threads that compute; of those that do not, the first ones copy. */
#define CONSUMERS (GROUPS * GROUP)
#define COPIERS 64
#define COPIERS_MEET 1

/** How work is cut and where sums lie; `hopper.ts` decides. */
struct Plan {
  /** Of a tile of rows the PARTS of dQ; of a tile of keys dK and dV. */
  float4 *rowSums, *keySums;
  /** The next item; how many have added to each tile of rows, of keys. */
  int *counters;
  int items, sequences, keyTiles;
  /** Tiles of rows of a key head in scratch memory; of a range. */
  int rowTiles, range;
  /** Tiles of rows after which a window's walk begins anew. */
  int cycle;

  __device__ int *rowsDone(i64 tile) const { return counters + 1 + tile; }
  __device__ int *keysDone(const Call &u, int tile) const {
    return rowsDone((i64)u.keyHeads * rowTiles) + tile;
  }
};

struct Barriers {
  Mbarrier keys, keysFree;
  Mbarrier queries[STAGES], queriesFree[STAGES];
  /** Of dO, LSE and dO . o. */
  Mbarrier gradients[GRADIENT_STAGES], gradientsFree[GRADIENT_STAGES];
  /** Parts of dQ of a stage's rows: may be added; have been. */
  Mbarrier turns[STAGES], added[STAGES];
  Mbarrier scores[2];
};

/** The place of tile n in a ring, and the parity of its phase there. */
template <int PLACES> __device__ inline unsigned placeIn(unsigned n) {
  return n % PLACES;
}
template <int PLACES> __device__ inline unsigned parityIn(unsigned n) {
  return n / PLACES % 2;
}

/**
 * A tile of keys of a head and a range of the rows that see any of them. Every
 * query has its key: position and number of a query are one. Items are numbered
 * so that each waits for earlier ones only, and taken in that order: the first
 * one that has not ended never waits.
 */
struct Item {
  Sequence s;
  int keyHead, tile;
  /** Its number among the tiles of keys of all heads and sequences. */
  int unitTile;
  int firstKey, endKey;
  /** Tiles of rows, and behind which one the walk starts. */
  int first, end, start;
  /** Ranges with rows of these keys: later ones, which come before, and others. */
  int before, after;
  /** Its unit's first tile of rows. */
  i64 rowTile;
#if VIEW == MASKED
  /** Of its unit's first list, for these keys. */
  const unsigned char *masks;
#endif

  /** False where no row of the range sees such a key. */
  __device__ bool open(const Call &u, const Plan &plan, int number) {
    int units = u.keyHeads * plan.sequences;
    int unit = number % units;
    tile = number / units % plan.keyTiles;
    int range = (plan.items - 1 - number) / units / plan.keyTiles;
    int sequence = unit / u.keyHeads;
    keyHead = unit % u.keyHeads;
    s = u.sequences[sequence];
    unitTile = unit * plan.keyTiles + tile;
    firstKey = tile * ROWS;
    endKey = min(firstKey + ROWS, keyCount(u, s));
    if (firstKey >= endKey) return false;
    // Queries that see nothing get the first keys' zeros.
    int from = tile == 0 ? 0 : seenFrom(u, firstKey) * UNIT / N;
    int to = (seenEnd(u, endKey - 1) * UNIT + N - 1) / N;
    before = (to - 1) / plan.range - range;
    after = range - from / plan.range;
    first = max(from, range * plan.range);
    end = min(to, (range + 1) * plan.range);
    if (first >= end) return false;
    int wrap = end / plan.cycle * plan.cycle;
    start = wrap > first ? wrap : end;
    // A sequence begins with a tile of its own.
    rowTile = (i64)keyHead * plan.rowTiles + sequence +
              (i64)s.queryStart * UNIT / N;
#if VIEW == MASKED
    masks = masksOf(u, s, 0, keyHead * UNIT) + tile;
#endif
    return true;
  }
  /** The first query that sees a key, and the one behind the last. */
  __device__ static int seenFrom(const Call &u, int key) {
    return VIEW == COMPRESSED ? key * u.stride + u.length - 1 : key;
  }
  __device__ int seenEnd(const Call &u, int key) const {
    return VIEW == ATTENTION ? min(key + u.window, s.queryCount) : s.queryCount;
  }
  /**
   * The walk goes down, from `start` and then from the end: the keys before
   * these, which add to dQ first, are ahead by a tile, at the same rows.
   */
  __device__ int count() const { return end - first; }
  __device__ int rowsAt(int n) const {
    int at = start - 1 - n;
    return at < first ? at + end - first : at;
  }
  /** Tiles of keys that add to a tile of rows, the first and the last. */
  __device__ int firstOf(const Call &u, int rows) const {
    return firstSeen(u, rows * N / UNIT) / ROWS;
  }
  __device__ int lastOf(const Call &u, int rows) const {
    int query = min((rows * N + N - 1) / UNIT, s.queryCount - 1);
    return max(lastSeen(u, query), 0) / ROWS;
  }
  /** A tile of rows. */
  __device__ QueryRows rows(const Call &u, int tile) const {
    return {s.queryStart, u.heads, keyHead * UNIT, tile * N,
            s.queryCount * UNIT - tile * N};
  }
  /** Rows `from ..` that see a key, as many as `count`. */
  __device__ void look(const Call &u, int key, int &from, int &count) const {
    from = seenFrom(u, key) * UNIT;
    count = max(seenEnd(u, key) * UNIT - from, 0);
  }
};

/** Which lists of a tile of rows have a warp's 16 keys: no lists. */
struct NoMasks {
  __device__ void load(const Call &, const Item &, int) {}
  template <int COLUMNS>
  __device__ void weigh(float (&p)[COLUMNS][4], const float2 (&lse)[COLUMNS],
                        float scale, int) const {
    weighColumns(p, lse, scale);
  }
};

#if VIEW == MASKED
/** Rows of a list: its leader's queries by the heads that share it. */
#define LIST_ROWS (SHARING * UNIT)
static_assert(LIST_ROWS >= 2 && 16 % LIST_ROWS == 0, "a lane a list at most");

struct TileMasks {
  /** Of the lane's list, for the item's keys: a bit a warp. */
  unsigned byte;

  /** On its way while scores are waited for. */
  __device__ void load(const Call &u, const Item &item, int tile) {
    constexpr int LISTS = N / LIST_ROWS;
    int lane = threadIdx.x % 32;
    int leader = tile * LISTS + lane;
    byte = 0;
    if (lane < LISTS && leader * SHARING < item.s.queryCount) {
      int step = u.lists * u.count * (int)sizeof(int);
      byte = __ldg(item.masks + (i64)leader * step);
    }
  }

  /** As `weighColumns`; lists that have not the keys have weights of 0. */
  template <int COLUMNS>
  __device__ void weigh(float (&p)[COLUMNS][4], const float2 (&lse)[COLUMNS],
                        float scale, int warp) const {
    // Eight columns are of one list, or of several.
    constexpr int EIGHTS = LIST_ROWS > 8 ? LIST_ROWS / 8 : 1;
    constexpr int LISTS = LIST_ROWS < 8 ? 8 / LIST_ROWS : 1;
    unsigned listed = __ballot_sync(0xffffffff, byte >> warp & 1);
    unsigned own = LISTS > 1 ? listed >> laneColumn() / LIST_ROWS : listed;
#pragma unroll
    for (int first = 0; first < COLUMNS; first += EIGHTS) {
      int list = 8 * first / LIST_ROWS;
      if (listed >> list & ((1u << LISTS) - 1)) {
        bool isListed = LISTS == 1 || own >> list & 1;
#pragma unroll
        for (int n = first; n < first + EIGHTS; n++) {
          weighColumn(p[n], lse[n], scale);
#pragma unroll
          for (int e = 0; e < 4; e++) p[n][e] = isListed ? p[n][e] : 0;
        }
      } else {
#pragma unroll
        for (int n = first; n < first + EIGHTS; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) p[n][e] = 0;
        }
      }
    }
  }
};
typedef TileMasks Masks;
#else
typedef NoMasks Masks;
#endif

/** The next item that has work; one without tiles of rows where there is none. */
__device__ inline void takeItem(const Call &u, const Plan &plan, Item &taken) {
  Item item;
  bool isOpen = false;
  while (!isOpen) {
    int number = atomicAdd(plan.counters, 1);
    isOpen = number >= plan.items || item.open(u, plan, number);
    if (number >= plan.items) item.first = item.end = 0;
  }
  taken = item;
}

/** What of shared memory is no tile; registers are for sums. */
struct Shared {
  Barriers barriers;
  /** By turns: the last one's sums are stored while the next one begins. */
  Item items[2];
  /** Of a stage: its tile of rows, whose part of dQ is added there. */
  int rows[STAGES];
  float4 *sums[STAGES];
  /** Whether that is the first part, and the last one. */
  bool isFirst[STAGES], isLast[STAGES];
  // The rows' LSE, then their dO . o: of two columns at a time, as reading
  // shared memory is the limit.
  __align__(16) float known[GRADIENT_STAGES][2 * N];
};

/** Takes items, and copies their keys and rows. */
__device__ inline void copyAll(const Call &u, const Plan &plan, const T *dO,
                               const float2 *statistics, T *tileK, T *tileV,
                               T *stagesQ, T *stagesO, Shared &shared) {
  Barriers &barriers = shared.barriers;
  Copies copies = {0};
  unsigned number = 0;
  int thread = threadIdx.x % GROUP;
  // Behind values that are columns of their keys others follow, whose products
  // with the zeros of dO are 0.
  clearBehind<ROWS, WIDTH + ROPE, COPIERS>(tileK);
#if !LATENT
  clearBehind<ROWS, VALUE, COPIERS>(tileV);
#endif
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    clearBehind<N, WIDTH + ROPE, COPIERS>(stagesQ + n * QUERIES_SIZE);
  }
#pragma unroll
  for (int n = 0; n < GRADIENT_STAGES; n++) {
    clearBehind<N, VALUE, COPIERS>(stagesO + n * GRADIENTS_SIZE);
  }
  for (unsigned parity = 0;; parity ^= 1) {
    copies.claim(&barriers.keysFree, parity);
    if (thread == 0) takeItem(u, plan, shared.items[parity]);
    meetAt(COPIERS_MEET, COPIERS);
    const Item &item = shared.items[parity];
    if (item.count() == 0) break;
    Source from = sourceOf(u, item.s, item.keyHead);
    copyTile<ROWS, 0, WIDTH, COPIERS>(tileK, from.k, from.keyStride,
                                      item.firstKey, item.endKey);
#if ROPE > 0
    copyTile<ROWS, WIDTH, ROPE, COPIERS>(tileK, from.kRope, ROPE, item.firstKey,
                                         item.endKey);
#endif
#if !LATENT
    copyTile<ROWS, 0, VALUE, COPIERS>(tileV, from.v, from.valueStride,
                                      item.firstKey, item.endKey);
#endif
    copies.commit(&barriers.keys);
    int count = item.count();
    for (int n = 0; n < count; n++, number++) {
      int tile = item.rowsAt(n);
      QueryRows rows = item.rows(u, tile);
      unsigned place = placeIn<STAGES>(number);
      copies.claim(&barriers.queriesFree[place], parityIn<STAGES>(number));
      T *tileQ = stagesQ + place * QUERIES_SIZE;
      copyChunks<N, 0, WIDTH, COPIERS>(tileQ, u.q, WIDTH, rows);
#if ROPE > 0
      copyChunks<N, WIDTH, ROPE, COPIERS>(tileQ, u.qRope, ROPE, rows);
#endif
      if (thread == 0) shared.rows[place] = tile;
      copies.commit(&barriers.queries[place]);

      place = placeIn<GRADIENT_STAGES>(number);
      copies.claim(&barriers.gradientsFree[place],
                   parityIn<GRADIENT_STAGES>(number));
      copyChunks<N, 0, VALUE, COPIERS>(stagesO + place * GRADIENTS_SIZE, dO,
                                       VALUE, rows);
      float *known = shared.known[place] + thread;
      i64 row = rows.numberOf(thread);
      cpAsync4(known, &statistics[row].x, row >= 0);
      cpAsync4(known + N, &statistics[row].y, row >= 0);
      copies.commit(&barriers.gradients[place]);
    }
  }
  copies.commit(&barriers.keys);
  copies.announce<0>();
}

/** One thread waits until parts of dQ may be added. */
__device__ inline void awaitTurns(const Call &u, const Plan &plan,
                                  Shared &shared) {
  Barriers &barriers = shared.barriers;
  unsigned number = 0;
  for (unsigned parity = 0;; parity ^= 1) {
    await(&barriers.keys, parity);
    const Item &item = shared.items[parity];
    int count = item.count();
    if (count == 0) return;
    for (int n = 0; n < count; n++, number++) {
      int rows = item.rowsAt(n);
      int before = item.tile - item.firstOf(u, rows);
      unsigned place = placeIn<STAGES>(number);
      await(&barriers.queriesFree[place], parityIn<STAGES>(number) ^ 1);
      i64 rowTile = item.rowTile + rows;
      shared.sums[place] = plan.rowSums + rowTile * (PARTS * PART);
      shared.isFirst[place] = before == 0;
      shared.isLast[place] = item.tile == item.lastOf(u, rows);
      awaitCount(plan.rowsDone(rowTile), before);
      arrive(&barriers.turns[place]);
    }
    arrive(&barriers.keysFree);
  }
}

/** One thread tells the keys behind these that parts of dQ are there. */
__device__ inline void passTurns(const Call &u, const Plan &plan,
                                 Shared &shared) {
  Barriers &barriers = shared.barriers;
  unsigned number = 0;
  for (unsigned parity = 0;; parity ^= 1) {
    await(&barriers.keys, parity);
    const Item &item = shared.items[parity];
    int count = item.count();
    if (count == 0) return;
    for (int n = 0; n < count; n++, number++) {
      unsigned place = placeIn<STAGES>(number);
      await(&barriers.added[place], parityIn<STAGES>(number));
      arrive(&barriers.queriesFree[place]);
      addToCount(plan.rowsDone(item.rowTile + item.rowsAt(n)));
    }
    arrive(&barriers.keysFree);
  }
}

/** What others have added to lies in the L2 cache. */
template <int COLUMNS>
__device__ inline void addStored(float (&x)[COLUMNS][4], const float4 *at,
                                 int step) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
    float4 four = __ldcg(at + n * step);
    x[n][0] += four.x;
    x[n][1] += four.y;
    x[n][2] += four.z;
    x[n][3] += four.w;
  }
}
template <int COLUMNS>
__device__ inline void store(const float (&x)[COLUMNS][4], float4 *at,
                             int step) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
    at[n * step] = make_float4(x[n][0], x[n][1], x[n][2], x[n][3]);
  }
}

template <int COLUMNS>
__device__ inline void addTo(float4 *at, const float (&x)[COLUMNS][4],
                             int step) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
    addFour(at + n * step, make_float4(x[n][0], x[n][1], x[n][2], x[n][3]));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperBackward(Call u, const T *dO, const float2 *statistics,
                   QueryGradients d, T *dK, T *dV, f32 *dKRope, Plan plan) {
  extern __shared__ int4 memory[];
  __shared__ Shared shared;
  Barriers &barriers = shared.barriers;
  T *tileK = tilesIn(memory);
  T *tileV = LATENT ? tileK : tileK + tileSize(ROWS, KEY);
  T *tileS = tileV + tileSize(ROWS, LATENT ? KEY : VALUE);
  T *stagesQ = tileS + 2 * SCORES_SIZE;
  T *stagesO = stagesQ + STAGES * QUERIES_SIZE;
#if BULK
  // The lane's of its warp's part of dQ, on the way to memory.
  float4 *staged = (float4 *)(stagesO + GRADIENT_STAGES * GRADIENTS_SIZE) +
                   threadIdx.x / 32 * (PART / 4) + threadIdx.x % 32;
#endif
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy, that compute, and the two that see to the turns.
    initBarrier(&barriers.keys, 2);
    initBarrier(&barriers.keysFree, 4 * GROUPS + 2);
    for (int n = 0; n < GRADIENT_STAGES; n++) {
      initBarrier(&barriers.gradients[n], 2);
      initBarrier(&barriers.gradientsFree[n], 4 * GROUPS);
    }
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&barriers.queries[n], 2);
      // One of the last two has to see each phase of `added`.
      initBarrier(&barriers.queriesFree[n], 4 * GROUPS + 1);
      initBarrier(&barriers.turns[n], 1);
      initBarrier(&barriers.added[n], 4 * GROUPS);
    }
    initBarrier(&barriers.scores[0], 4 * GROUPS);
    initBarrier(&barriers.scores[1], 4 * GROUPS);
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<SERVING>();
    int thread = threadIdx.x % GROUP;
    if (thread < COPIERS) {
      copyAll(u, plan, dO, statistics, tileK, tileV, stagesQ, stagesO, shared);
    }
    if (thread == COPIERS) awaitTurns(u, plan, shared);
    if (thread == COPIERS + 32) passTurns(u, plan, shared);
    return;
  }
  takeRegisters<SUMMING>();

  int warp = threadIdx.x % GROUP / 32;
  int row = 64 * group + 16 * warp + laneRow();
  float scale = u.scale * LOG2_E;
  // Pieces of 16 bytes: where tiles begin, its own keys in them, and the lane's
  // elements of dS. All else is made of them where it is used, as registers are
  // for sums.
  unsigned tiles = (unsigned)__cvta_generic_to_shared(tileK) / 16;
  unsigned spot = row * 64 + laneRow() * 8 + laneColumn();
  constexpr int V_AT = LATENT ? 0 : tileSize(ROWS, KEY) / 8;
  constexpr int S_AT = V_AT + tileSize(ROWS, LATENT ? KEY : VALUE) / 8;
  constexpr int Q_AT = S_AT + 2 * SCORES_SIZE / 8;
  constexpr int O_AT = Q_AT + STAGES * QUERIES_SIZE / 8;
  auto own = [&](int at) {
    return placeAt<ROWS>(tiles + at + group * (64 * 128 / 16));
  };
  auto queriesOf = [&](unsigned n) {
    return placeAt<N>(tiles + Q_AT + placeIn<STAGES>(n) * (QUERIES_SIZE / 8));
  };
  // The number of the tile of rows.
  unsigned number = 0;
  // Of the scores' gradients: which of two tiles, and its phase.
  int which = 0;
  unsigned phase = 0;
  for (unsigned parity = 0;; parity ^= 1) {
    await(&barriers.keys, parity);
    const Item &item = shared.items[parity];
    int count = item.count();
    if (count == 0) return;
    SeenRows seen = SeenRows::of(u, item, item.firstKey + 64 * group);
    float sumsK[KEY / 8][4];
    float sumsV[VALUES / 8][4];
    clear(sumsK);
    clear(sumsV);
    // x: dP, then a part of dQ.
    float p[N / 8][4], x[N / 8][4];
    unsigned weights[N / 16][4];
    Masks masks;

    // LSE or dO . o of the lane's rows: on their way while products are waited
    // for, else they come one by one.
    float2 known[N / 8];
    auto loadKnown = [&](int first) {
      loadColumns(known,
                  shared.known[placeIn<GRADIENT_STAGES>(number)] + first);
    };
    auto startScores = [&] {
      wgmmaFence();
      multiplyTiles<KEY, ROWS, N>(p, own(0), queriesOf(number));
      wgmmaCommit();
      masks.load(u, item, shared.rows[placeIn<STAGES>(number)]);
    };
    auto startValues = [&] {
      MatrixPlace placeO =
          placeAt<N>(tiles + O_AT +
                     placeIn<GRADIENT_STAGES>(number) * (GRADIENTS_SIZE / 8));
      operandsOf(weights, p);
      hold(weights);
      hold(sumsV);
      wgmmaFence();
      multiplyTiles<VALUES, ROWS, N>(x, own(V_AT), placeO);
      wgmmaCommit();
      multiplyWeights(sumsV, weights, placeO, 1);
      wgmmaCommit();
    };
    auto weigh = [&] {
      hold(p);
      int base = shared.rows[placeIn<STAGES>(number)] * N;
      masks.weigh(p, known, scale, 4 * group + warp);
      // Rows that are none have q, dO and statistics of 0: they add 0.
      if (base >= seen.allFirst && base + N <= seen.allEnd) return;
      LaneRows seeing;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int key = item.firstKey + row + 8 * half;
        item.look(u, key, seeing.first[half], seeing.count[half]);
      }
      seeing.hide(p, 0, base);
    };
    // dS to shared memory, a key's rows side by side.
    auto differ = [&] {
      hold(x);
      T *to = tileS + which * SCORES_SIZE;
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        float2 delta = known[n];
        T *piece = to + (spot ^ n * 8);
        storePair(piece, p[n][0] * (x[n][0] - delta.x),
                  p[n][1] * (x[n][1] - delta.y));
        storePair(piece + 8 * 64, p[n][2] * (x[n][2] - delta.x),
                  p[n][3] * (x[n][3] - delta.y));
      }
      fenceProducts();
      arriveWarp(&barriers.scores[which]);
    };
    // Nothing of a tile that no key sees.
    auto clearScores = [&] {
      T *to = tileS + which * SCORES_SIZE;
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        T *piece = to + (spot ^ n * 8);
        storePair(piece, 0, 0);
        storePair(piece + 8 * 64, 0, 0);
      }
      fenceProducts();
      arriveWarp(&barriers.scores[which]);
    };
    auto startSums = [&](unsigned of, bool saw) {
      int at = S_AT + which * (SCORES_SIZE / 8);
      hold(sumsK);
      wgmmaFence();
      if (PARTS == 2 || group == 0) {
        multiplyTransposed<ROWS>(
            x, placeAt<ROWS>(tiles + at),
            placeAt<ROWS>(tiles + group * (ROWS * 128 / 16)));
      }
      wgmmaCommit();
      if (saw) {
        addProduct<N, ROWS>(sumsK, own(at), queriesOf(of));
      }
      wgmmaCommit();
    };
    auto nextScores = [&] {
      which ^= 1;
      if (which == 0) phase ^= 1;
    };
    // The warpgroup's part of dQ, as registers hold it: 16 bytes a lane.
    auto addQueries = [&](unsigned of) {
      hold(x);
      unsigned place = placeIn<STAGES>(of);
      await(&barriers.turns[place], parityIn<STAGES>(of));
      if (PARTS == 1 && group > 0) return;
      bool isFirst = shared.isFirst[place];
      float4 *to = shared.sums[place] + threadIdx.x % 32 +
                   (4 * group + warp) * (PART / 4);
      if (!shared.isLast[place]) {
#if BULK
        store(x, staged, 32);
        fenceProducts();
        __syncwarp();
        if (threadIdx.x % 32 > 0) return;
        constexpr int BYTES = PART / 4 * sizeof(float4);
        if (isFirst) {
          bulkStore(to, staged, BYTES);
        } else {
          bulkAdd(to, staged, BYTES);
        }
#else
        if (isFirst) {
          store(x, to, 32);
        } else {
          addTo(to, x, 32);
        }
#endif
        return;
      }
      if (!isFirst) addStored(x, to, 32);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        QueryRows rows = item.rows(u, shared.rows[place]);
        i64 index = rows.numberOf(16 * warp + laneRow() + 8 * half);
        emitGradient(x, half, u.scale, d, index, CHUNK * group);
      }
    };

    // What the warp has added is there.
    auto finishAdding = [&](unsigned of) {
      __syncwarp();
      if (threadIdx.x % 32 > 0) return;
#if BULK
      bulkWait();
#endif
      arrive(&barriers.added[placeIn<STAGES>(of)]);
    };
    // Where dQ is one warpgroup's, that is the only condition.
    auto seesTile = [&] {
      unsigned place = placeIn<STAGES>(number);
      await(&barriers.queries[place], parityIn<STAGES>(number));
      int base = shared.rows[place] * N;
      return PARTS == 1 || (base < seen.someEnd && base + N > seen.someFirst);
    };
    auto awaitGradients = [&] {
      await(&barriers.gradients[placeIn<GRADIENT_STAGES>(number)],
            parityIn<GRADIENT_STAGES>(number));
    };
    auto freeGradients = [&] {
      arriveWarp(&barriers.gradientsFree[placeIn<GRADIENT_STAGES>(number)]);
    };
    auto begin = [&](bool sees) {
      if (sees) startScores();
      awaitGradients();
      if (sees) {
        loadKnown(0);
        wgmmaWait<0>();
        weigh();
        startValues();
        loadKnown(N);
        wgmmaWait<1>();
        differ();
        wgmmaWait<0>();
        hold(weights);
        hold(sumsV);
      } else {
        clearScores();
      }
      freeGradients();
    };
    // The next tile, and dQ and dK of the one before. Whether the warpgroup sees
    // these is a constant of each call: products behind a condition would be
    // serialised.
    auto step = [&](bool sees, bool saw) {
      unsigned before = number - 1;
      if (sees) startScores();
      await(&barriers.scores[which], phase);
      startSums(before, saw);
      nextScores();
      awaitGradients();
      if (sees) {
        loadKnown(0);
        wgmmaWait<2>();
        weigh();
      }
      wgmmaWait<1>();
      addQueries(before);
#if !BULK
      finishAdding(before);
#endif
      if (sees) {
        startValues();
        loadKnown(N);
        wgmmaWait<2>();
      } else {
        wgmmaWait<0>();
      }
      hold(sumsK);
      arriveWarp(&barriers.queriesFree[placeIn<STAGES>(before)]);
      if (sees) {
        wgmmaWait<1>();
        differ();
        wgmmaWait<0>();
        hold(weights);
        hold(sumsV);
      } else {
        clearScores();
      }
#if BULK
      finishAdding(before);
#endif
      freeGradients();
    };
    auto end = [&](bool saw) {
      await(&barriers.scores[which], phase);
      startSums(number, saw);
      nextScores();
      wgmmaWait<1>();
      addQueries(number);
      finishAdding(number);
      wgmmaWait<0>();
      hold(sumsK);
      arriveWarp(&barriers.queriesFree[placeIn<STAGES>(number)]);
      number++;
    };
    bool saw = seesTile();
    if (saw) {
      begin(true);
    } else {
      begin(false);
    }
    for (int n = 1; n < count; n++) {
      number++;
      renew(tiles);
      renew(spot);
      bool sees = seesTile();
      if (sees && saw) {
        step(true, true);
      } else if (sees) {
        step(true, false);
      } else if (saw) {
        step(false, true);
      } else {
        step(false, false);
      }
      saw = sees;
    }
    if (saw) {
      end(true);
    } else {
      end(false);
    }
    arriveWarp(&barriers.keysFree);

    // Ranges add to the keys' sums one behind the other, the last rows first.
    int thread = threadIdx.x;
    float4 *sums = plan.keySums + thread +
                   (i64)item.unitTile * ((KEY + VALUES) / 8 * CONSUMERS);
    if (item.before > 0) {
      if (thread % 32 == 0) {
        awaitCount(plan.keysDone(u, item.unitTile), 4 * GROUPS * item.before);
      }
      __syncwarp();
      addStored(sumsK, sums, CONSUMERS);
      addStored(sumsV, sums + KEY / 8 * CONSUMERS, CONSUMERS);
    }
    if (item.after > 0) {
      store(sumsK, sums, CONSUMERS);
      store(sumsV, sums + KEY / 8 * CONSUMERS, CONSUMERS);
      __syncwarp();
      if (thread % 32 == 0) addToCount(plan.keysDone(u, item.unitTile));
      continue;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int key = item.firstKey + row + 8 * half;
      bool isKey = key < item.endKey;
      i64 at = ((i64)keyStart(item.s) + key) * u.keyHeads + item.keyHead;
      emitRow(sumsV, half, 1, [&](int c, unsigned low, unsigned high) {
        if (isKey && c < VALUE) storeFour(dV + at * VALUE + c, low, high);
      });
      emitRow(sumsK, half, u.scale, [&](int c, unsigned low, unsigned high) {
        if (isKey && c < WIDTH) storeFour(dK + at * WIDTH + c, low, high);
      });
      // The rotary key is shared: this is the head's part of its gradient.
#pragma unroll
      for (int n = WIDTH / 8; n < (WIDTH + ROPE) / 8; n++) {
        if (!isKey) continue;
        storePair(dKRope + at * ROPE + 8 * n + laneColumn() - WIDTH,
                  sumsK[n][2 * half] * u.scale,
                  sumsK[n][2 * half + 1] * u.scale);
      }
    }
  }
}
