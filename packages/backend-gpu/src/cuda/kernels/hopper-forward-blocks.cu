// Parts of selected attention as flash-forward-blocks.cu, on Hopper: a warp's 16
// rows are those of one list, and its warpgroup's product has four lists, a
// round. Rounds are dealt to the warpgroups in turn, over the ends of items.
// Lists with their own block, the one before it and the first one have one part
// of these three.
#include "hopper.cuh"
#include "parts.cuh"

/** Lists of a round; tiles of a round's queries, and of an item's keys. */
constexpr int LISTS = GROUP / 32;
constexpr int TILE = 64;
static_assert(N == BLOCK && BLOCK == TILE, "a block a tile");
static_assert(ITEM <= 32 * LISTS, "a lane of a copying warp has a list");
static_assert(GROUPS <= STAGES, "each warpgroup has a round");
static_assert(STAGES + KEY_STAGES < 255, "a byte tells which");

/** Blocks that are walked over together: the first one, and two of neighbours. */
#define OWN_BLOCKS 3
static_assert(KEY_STAGES >= OWN_BLOCKS, "all are there at once");

/** Elements of a stage. */
constexpr int QUERIES_SIZE = tileSize(TILE, KEY);
constexpr int KEYS_SIZE = tileSize(TILE, KEY);
constexpr int ITEM_SIZE = KEYS_SIZE + (LATENT ? 0 : tileSize(TILE, VALUE));

/** Registers of a thread that computes, and of one that copies. */
constexpr int COMPUTING_REGISTERS = GROUPS == 3 ? 144 : 208;
constexpr int COPYING_REGISTERS = GROUPS == 3 ? 80 : 88;
static_assert(GROUPS * COMPUTING_REGISTERS + COPYING_REGISTERS <=
                  (GROUPS + 1) * (65536 / THREADS / 8 * 8),
              "a block has what all its threads started with");

/** The barrier at which the copying warps meet. */
#define COPIERS 1

/** Tiles on their way behind the oldest one: what hides how far memory is. */
constexpr int AHEAD = 4;

/** What a warp that computes is told of its list. */
struct __align__(16) Told {
  /** The number of the list's part, -1 where there is no list. */
  int part;
  /** The last key of the block that its first row sees. */
  int last;
  /**
   * Which tile has the keys, its parity, whether it is done with then, and
   * whether the next two have keys, too.
   */
  int keys, unused;

  __device__ static int place(const TurnOf<KEY_STAGES> &turn, bool isDone,
                              bool isOwn) {
    return turn.stage | (int)turn.parity << 8 | (isDone ? 1 << 9 : 0) |
           (isOwn ? 1 << 10 : 0);
  }
  /** The place of the nth tile. */
  __device__ TurnOf<KEY_STAGES> turn(int n) const {
    TurnOf<KEY_STAGES> turn = {keys & 0xff, (unsigned)keys >> 8 & 1};
    turn.skip(n);
    return turn;
  }
  __device__ bool isDone() const { return keys >> 9 & 1; }
  __device__ bool isOwn() const { return keys >> 10 & 1; }
  __device__ bool isEnd() const { return keys < 0; }
};

/** What the warps of a block share beside tiles. */
struct Shared {
  // A tile is there, and its place is free: those of queries, then of keys.
  Mbarrier full[STAGES + KEY_STAGES], free[STAGES + KEY_STAGES];
  Told told[STAGES][LISTS];
  // Of the copying warps: which item comes, in turn.
  int numbers[2];
};

/**
 * A copying warp's tiles that are not announced yet, a byte each: more are on
 * their way than with `Copies`, as a tile is only a few copies of a thread.
 */
struct Underway {
  Shared &shared;
  unsigned due;

  /** Announces the oldest one; `tile` has been started since. */
  __device__ void shift(int tile = 0xff) {
    static_assert(AHEAD == 4, "bytes of a register");
    unsigned oldest = due >> 24;
    due = due << 8 | tile;
    if (oldest != 0xff) arriveWarp(shared.full + oldest);
  }
  __device__ void announceAll() {
    cpAsyncWait<0>();
    fenceProducts();
#pragma unroll
    for (int n = 0; n < AHEAD; n++) shift();
  }
  /** Waits until a tile's place is free. */
  __device__ void claim(int tile, unsigned parity) {
    Mbarrier *free = shared.free + tile;
    if (!__all_sync(0xffffffff, hasEnded(free, parity ^ 1))) {
      announceAll();
      await(free, parity ^ 1);
    }
  }
  /** What has been started since is that tile. */
  __device__ void commit(int tile) {
    cpAsyncCommit();
    cpAsyncWait<AHEAD>();
    fenceProducts();
    shift(tile);
  }
};

/**
 * Starts to copy COLUMNS elements of a warp's 16 rows to columns FIRST .. of
 * `tile`, from its first one on. Row i lies `offsetOf(i)` behind `base`; zeros
 * from row `count` on. What depends on the lane is worked out once: rows 4
 * apart have their pieces in one of two places, others in the same.
 */
template <int FIRST, int COLUMNS, typename Offset>
__device__ inline void copySixteen(T *tile, const T *base, int count,
                                   Offset offsetOf) {
  constexpr int TAKEN = copyWidth(FIRST, COLUMNS);
  constexpr int PIECES = TAKEN / 8;
  constexpr int STEP = 32 / PIECES;
  int lane = threadIdx.x % 32;
  int piece = lane % PIECES;
  int row = lane / PIECES;
  T *chunk = tile + FIRST / 64 * TILE * 64 + row * 64;
  int place = (FIRST % 64 / 8 + piece) ^ row % 8;
  T *to[2] = {chunk + place * 8, chunk + (place ^ 4) * 8};
  const T *from = base + piece * 8 + offsetOf(row);
  // Else every copy works out its own addresses from the start.
  renew(to[0]);
  renew(to[1]);
  renew(from);
  auto start = [&](int i, bool valid) {
    if (STEP > 16 && row >= 16) return;
    cpAsync16((STEP == 4 && i & 4 ? to[1] : to[0]) + i * 64,
              from + (offsetOf(i + row) - offsetOf(row)), valid);
  };
  if (count >= 16) {
#pragma unroll
    for (int i = 0; i < 16; i += STEP) start(i, true);
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; i += STEP) start(i, i + row < count);
  }
  if constexpr (COLUMNS > TAKEN) {
    copySixteen<FIRST + TAKEN, COLUMNS - TAKEN>(tile, base + TAKEN, count,
                                                offsetOf);
  }
}

/** Rows of q of a list: of one query, or of the queries of a leader. */
template <int WIDE> __device__ inline int rowOffset(int i, int heads) {
  return UNIT == 16 ? i * WIDE : (i / UNIT * heads + i % UNIT) * WIDE;
}

__device__ inline void copyAll(const Call &u, const Items &all, const Cut &cut,
                               T *queries, T *keys, Shared &shared) {
  int warp = threadIdx.x % GROUP / 32;
  int lane = threadIdx.x % 32;
  Underway copies = {shared, ~0u};
  Turn turn = {0, 0};
  TurnOf<KEY_STAGES> turnK = {0, 0};
#pragma unroll 1
  for (int n = 0; n < STAGES; n++) {
    clearBehind<TILE, WIDTH + ROPE>(queries + n * QUERIES_SIZE);
  }
#pragma unroll 1
  for (int n = 0; n < KEY_STAGES; n++) {
    clearBehind<TILE, WIDTH + ROPE>(keys + n * ITEM_SIZE);
  }
  // Each warp has one list of a round, and knows it by the lane of the round's
  // number: an item's lists are looked up at once, an item ahead.
  int itemCount = all.counts[all.range].x;
  auto entryOf = [&](const Item &item) {
    int i = LISTS * lane + warp;
    const unsigned *of = all.entries + (i64)item.chunk * cut.most * u.count;
    return i < (int)item.count ? of[item.first + i] : 0;
  };
  // Two items are each block's own, the others who comes first takes.
  bool takes = threadIdx.x % GROUP == 0;
  auto take = [&] {
    return 2 * (int)gridDim.x + atomicAdd(&all.counts[all.range].y, 1);
  };
  int taken = takes ? take() : 0;
  Item item = all.at(blockIdx.x, itemCount);
  Item next = all.at(gridDim.x + blockIdx.x, itemCount);
  unsigned entry = entryOf(item);
  for (int n = 0; item.count > 0; n = 1 - n) {
    if (takes) {
      shared.numbers[n] = taken;
      taken = take();
    }
    // The place of the item before is free: here all had read it.
    meetAt(COPIERS, GROUP);
    Item following = all.at(shared.numbers[n], itemCount);
    unsigned nextEntry = entryOf(next);

    Chunk chunk = Chunk::of(item.chunk, u.sequences, cut, SHARING);
    Sequence s = u.sequences[chunk.sequence];
    int head0 = chunk.unit * UNIT;
    int listCount = item.count;
    int rounds = (listCount + LISTS - 1) / LISTS;
    int firstKey = item.block * BLOCK;
    // Where its tiles of keys begin.
    TurnOf<KEY_STAGES> keysAt = turnK;
    Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
    auto copyBlock = [&](int block) {
      int key = block * BLOCK + 16 * warp;
      int count = s.keyCount - key;
      T *tile = keys + turnK.stage * ITEM_SIZE + 16 * warp * 64;
      copies.claim(STAGES + turnK.stage, turnK.parity);
      // Warpgroups that get no round of it.
      if (lane == 0) {
        for (int n = rounds; n < GROUPS; n++) {
          arrive(shared.free + STAGES + turnK.stage);
        }
      }
      auto keyAt = [&](int i) { return (i64)i * from.keyStride; };
      copySixteen<0, WIDTH>(tile, from.k + (i64)key * from.keyStride, count,
                            keyAt);
#if ROPE > 0
      copySixteen<WIDTH, ROPE>(tile, from.kRope + (i64)key * ROPE, count,
                               [](int i) { return i * ROPE; });
#endif
#if !LATENT
      auto valueAt = [&](int i) { return (i64)i * from.valueStride; };
      copySixteen<0, VALUE>(tile + KEYS_SIZE,
                            from.v + (i64)key * from.valueStride, count,
                            valueAt);
#endif
      copies.commit(STAGES + turnK.stage);
      turnK.next();
    };
    // The last one is its own, of which rows see some keys only.
    int blocks = item.isOwn ? OWN_BLOCKS : 1;
#pragma unroll 1
    for (int n = blocks - 1; n >= 0; n--) {
      copyBlock(n == OWN_BLOCKS - 1 ? 0 : (int)item.block - n);
    }

    int leader = entry >> 16;
    ListRows rows = ListRows::of(s, chunk.first + leader, SHARING, UNIT);
    int row = rows.firstQuery * u.heads + head0;
    int last = rows.position - firstKey;
    int part = ((item.chunk - all.firstChunk()) * cut.most + leader) * u.count +
               (int)(entry & 0xffff);
    bool isList = LISTS * lane + warp < listCount;
    if (!isList) rows.count = 0;
    for (int round = 0; round < rounds; round++) {
      T *tile = queries + turn.stage * QUERIES_SIZE + 16 * warp * 64;
      int count = __shfl_sync(0xffffffff, rows.count, round);
      i64 first = __shfl_sync(0xffffffff, row, round);
      copies.claim(turn.stage, turn.parity);
      if (lane == round) {
        bool isDone = round + GROUPS >= rounds;
        int place = Told::place(keysAt, isDone, item.isOwn);
        shared.told[turn.stage][warp] = {isList ? part : -1, last, place, 0};
      }
      if (count > 0) {
        copySixteen<0, WIDTH>(
            tile, u.q + first * WIDTH, count,
            [&](int i) { return rowOffset<WIDTH>(i, u.heads); });
#if ROPE > 0
        copySixteen<WIDTH, ROPE>(
            tile, u.qRope + first * ROPE, count,
            [&](int i) { return rowOffset<ROPE>(i, u.heads); });
#endif
      }
      copies.commit(turn.stage);
      turn.next();
    }
    item = next;
    entry = nextEntry;
    next = following;
  }
  // A last round for each warpgroup.
  copies.announceAll();
  for (int n = 0; n < GROUPS; n++) {
    copies.claim(turn.stage, turn.parity);
    if (lane == 0) shared.told[turn.stage][warp] = {-1, 0, -1, 0};
    arriveWarp(shared.full + turn.stage);
    turn.next();
  }
}

/** What a warp's list finds in a block, or in several. */
struct Found {
  float sums[VALUES / 8][4];
  float factor[2], lse[2];

  /** In COUNT tiles of keys; that of its queries is free behind the scores. */
  template <int COUNT>
  __device__ void attend(Shared &shared, const Told &own, MatrixPlace queries,
                         Mbarrier *queriesFree, unsigned keys, float scale) {
    constexpr int VALUES_AT = LATENT ? 0 : KEYS_SIZE * 2 / 16;
    float scores[COUNT][N / 8][4];
    unsigned weights[COUNT][N / 16][4];
    auto tile = [&](int n) {
      return placeAt<TILE>(keys + own.turn(n).stage * (ITEM_SIZE * 2 / 16));
    };
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      TurnOf<KEY_STAGES> turn = own.turn(n);
      await(shared.full + STAGES + turn.stage, turn.parity);
    }
    wgmmaFence();
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      multiplyTiles<KEY, TILE, TILE>(scores[n], queries, tile(n));
    }
    wgmmaCommit();
    wgmmaWait<0>();
#pragma unroll
    for (int n = 0; n < COUNT; n++) hold(scores[n]);
    arriveWarp(queriesFree);
    hideBehind(scores[COUNT - 1], own.last);
    weighBlocks<COUNT>(weights, scores, scale, factor, lse);
    forget(sums);
#pragma unroll
    for (int n = 0; n < COUNT; n++) hold(weights[n]);
    wgmmaFence();
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      multiplyWeights(sums, weights[n], tile(n) + VALUES_AT, n > 0);
    }
    wgmmaCommit();
    wgmmaWait<0>();
    hold(sums);
    if (!own.isDone()) return;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      arriveWarp(shared.free + STAGES + own.turn(n).stage);
    }
  }
};

/** A range of chunks, as in flash-forward-blocks.cu. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperForwardBlocks(Call u, Parts parts, Items all, Cut cut) {
  extern __shared__ int4 memory[];
  __shared__ Shared shared;
  T *queries = tilesIn(memory);
  T *keys = queries + STAGES * QUERIES_SIZE;
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy; warps that compute, of one warpgroup or of all.
    for (int n = 0; n < STAGES + KEY_STAGES; n++) {
      initBarrier(shared.full + n, 4);
      initBarrier(shared.free + n, n < STAGES ? 4 : 4 * GROUPS);
    }
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING_REGISTERS>();
    copyAll(u, all, cut, queries, keys, shared);
    return;
  }
  takeRegisters<COMPUTING_REGISTERS>();

  int warp = threadIdx.x % GROUP / 32;
  int lane = threadIdx.x % 32;
  float scale = u.scale * LOG2_E;
  // By 16 bytes: places are made of it, as they take two registers each.
  unsigned queriesAt = (unsigned)__cvta_generic_to_shared(queries) / 16;
  unsigned keysAt = (unsigned)__cvta_generic_to_shared(keys) / 16;
  for (Turn turn = {group, 0};; turn.skip(GROUPS)) {
    await(shared.full + turn.stage, turn.parity);
    Told own = shared.told[turn.stage][warp];
    // One for the warp, as the compiler is to know.
    own.keys = __shfl_sync(0xffffffff, own.keys, 0);
    if (own.isEnd()) break;
    MatrixPlace place =
        placeAt<TILE>(queriesAt + turn.stage * (QUERIES_SIZE * 2 / 16));
    Mbarrier *free = shared.free + turn.stage;
    Found found;
    if (own.isOwn()) {
      found.attend<OWN_BLOCKS>(shared, own, place, free, keysAt, scale);
    } else {
      found.attend<1>(shared, own, place, free, keysAt, scale);
    }
    if (own.part < 0) continue;
    if (laneColumn() == 0) {
      float *at = parts.lse + (i64)own.part * 16 + laneRow();
      __stcg(at, found.lse[0]);
      __stcg(at + 8, found.lse[1]);
    }
    uint4 *to = parts.o + (i64)own.part * PART + lane;
    // Parts leave the L2 cache first: keys and queries are read again.
#pragma unroll
    for (int n = 0; n < VALUES / 16; n++) {
      __stcs(to + 32 * n, partOf(found.sums[2 * n], found.sums[2 * n + 1],
                                 found.factor));
    }
  }
}
