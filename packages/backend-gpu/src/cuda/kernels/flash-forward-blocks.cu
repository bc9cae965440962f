// o = softmax(scores) v of selected attention where a list has 16 rows or fewer,
// for 16-bit types. A block of keys and its values stay in shared memory, and
// the queries of those lists pass that have it: 8 KiB of queries and result for
// a list's 16 rows, where its keys and values are 32. What a list finds in a
// block is a part in scratch memory; join-lists.cu adds those of a list.
#include "parts.cuh"

static_assert(N == BLOCK && ROWS == 32 * WARPS && KEY_WARPS == 1, "a block a tile");
static_assert(ITEM <= 32, "a warp takes the entries");

/** Lists at a time; a warp has two. */
constexpr int LISTS = ROW_TILES * WARPS;
/** Pairs of 8 columns of o that are summed at a time. */
constexpr int STEP = VALUES % 32 == 0 ? 2 : 1;

/** An item that a block of threads has taken; none has a count of 0. */
struct Taken {
  Item item;
  unsigned entries[ITEM];

  __device__ int leaderOf(int i) const { return entries[i] >> 16; }
  __device__ int placeOf(int i) const { return entries[i] & 0xffff; }
};

/** A range of chunks, whose parts are those of `parts`. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashForwardBlocks(Call u, Parts parts, Items all, Cut cut) {
  extern __shared__ int4 memory[];
  __shared__ Taken taken[2];
  T *tileK = (T *)memory;
  T *tileV = LATENT ? tileK : tileK + N * KEY;
  T *tileQ = tileK + STAGE;
  clearColumns<KEY, N, WIDTH + ROPE>(tileK);
#if !LATENT
  clearColumns<VALUES, N, VALUE>(tileV);
#endif
  clearColumns<KEY, ROWS, WIDTH + ROPE>(tileQ);

  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  // The next item comes while one is computed with, by the first warp.
  int number = blockIdx.x;
  int itemCount = all.counts[all.range].x;
  auto entryOf = [&](const Item &item) {
    const unsigned *from = all.entries + (i64)item.chunk * cut.most * u.count;
    return lane < (int)item.count ? from[item.first + lane] : 0;
  };
  auto keep = [&](Taken &to, const Item &item, unsigned entry) {
    if (lane == 0) to.item = item;
    if (lane < (int)item.count) to.entries[lane] = entry;
  };
  if (warp == 0) {
    Item item = all.at(number, itemCount);
    keep(taken[0], item, entryOf(item));
  }

  float scale = u.scale * LOG2_E;
  for (int turn = 0;; turn = 1 - turn) {
    // What is taken is known, and all are done with the item before.
    __syncthreads();
    const Taken &own = taken[turn];
    Item item = own.item;
    int listCount = item.count;
    if (listCount == 0) break;
    Chunk chunk = Chunk::of(item.chunk, u.sequences, cut, SHARING);
    Sequence s = u.sequences[chunk.sequence];
    int head0 = chunk.unit * UNIT;
    int firstKey = item.block * BLOCK;
    auto rowsOf = [&](int i) {
      return ListRows::of(s, chunk.first + own.leaderOf(i), SHARING, UNIT);
    };
    // Lists of a round, of which the warp has every WARPS-th.
    auto copyQueries = [&](int base) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
        int i = base + m * WARPS + warp;
        if (i >= listCount) continue;
        ListRows rows = rowsOf(i);
        auto rowOf = [&](int rho) {
          return rho < rows.count ? (rows.firstQuery + rho / UNIT) * u.heads +
                                        head0 + rho % UNIT
                                  : -1;
        };
        T *to = tileQ + (warp * ROW_TILES + m) * 16 * KEY;
        copyRows<KEY, 16, 0, WIDTH, 32>(to, lane, u.q, WIDTH, rowOf);
#if ROPE > 0
        copyRows<KEY, 16, WIDTH, ROPE, 32>(to, lane, u.qRope, ROPE, rowOf);
#endif
      }
    };
    Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
    auto keyOf = [&](int i) {
      return firstKey + i < s.keyCount ? firstKey + i : -1;
    };
    // A chunk reads them about once: they leave the L2 cache first.
    CopyOnce once = {leavesFirst()};
    copyQueries(0);
    copyRows<KEY, N, 0, WIDTH, THREADS>(tileK, threadIdx.x, from.k,
                                        from.keyStride, keyOf, once);
#if ROPE > 0
    copyRows<KEY, N, WIDTH, ROPE, THREADS>(tileK, threadIdx.x, from.kRope, ROPE,
                                           keyOf, once);
#endif
    cpAsyncCommit();
#if !LATENT
    copyRows<VALUES, N, 0, VALUE, THREADS>(tileV, threadIdx.x, from.v,
                                           from.valueStride, keyOf, once);
#endif
    cpAsyncCommit();

    i64 first = (i64)(item.chunk - all.firstChunk()) * cut.most * u.count;
    number += gridDim.x;
    Item next;
    unsigned nextEntry;
    for (int base = 0; base < listCount; base += LISTS) {
      if (base == 0) {
        cpAsyncWait<1>();
        __syncthreads();
      } else {
        cpAsyncWait<0>();
        __syncwarp();
      }
      bool hasLists = base + warp < listCount;
      float scores[ROW_TILES][N / 8][4];
      clear(scores);
      if (hasLists) {
        Lane<KEY> queryLane = firstOperand<KEY>(tileQ + warp * ROW_TILES * 16 * KEY);
        auto query = [&](unsigned (&a)[4], int m, int k) {
          queryLane.load<false>(a, 16 * m, k);
        };
        multiplyRows<N, KEY, 4>(scores, query, secondOperand<KEY>(tileK));
      }
      __syncwarp();
      copyQueries(base + LISTS);
      cpAsyncCommit();
      if (base == 0 && warp == 0) next = all.at(number, itemCount);

      unsigned weights[ROW_TILES][N / 16][4];
      float factor[ROW_TILES][2];
      float known[ROW_TILES][2];
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
        // What becomes of one that is not there nobody reads.
        ListRows rows = rowsOf(min(base + m * WARPS + warp, listCount - 1));
        hideBehind(scores[m], rows.position - firstKey);
        weighBlocks<1>(weights + m, scores + m, scale, factor[m], known[m]);
      }
      if (base == 0 && warp == 0) nextEntry = entryOf(next);
      if (base == 0) {
        // The values are there for all.
        cpAsyncWait<1>();
        __syncthreads();
      }

      Lane<LATENT ? KEY : VALUES> valueLane =
          secondTransposed<LATENT ? KEY : VALUES>(tileV);
#pragma unroll
      for (int column = 0; hasLists && column < VALUES / 16; column += STEP) {
        float sums[ROW_TILES][2 * STEP][4];
        clear(sums);
#pragma unroll
        for (int k = 0; k < N / 16; k++) {
#pragma unroll
          for (int n = 0; n < STEP; n++) {
            unsigned b[4];
            valueLane.template load<true>(b, 16 * k, column + n);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
              multiply(sums[m], n, weights[m][k], b);
            }
          }
        }
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
          int i = base + m * WARPS + warp;
          if (i >= listCount) continue;
          i64 part = first + own.leaderOf(i) * u.count + own.placeOf(i);
          if (column == 0 && laneColumn() == 0) {
            float *at = parts.lse + part * 16 + laneRow();
            __stcg(at, known[m][0]);
            __stcg(at + 8, known[m][1]);
          }
          uint4 *to = parts.o + part * PART + column * 32 + lane;
#pragma unroll
          for (int n = 0; n < STEP; n++) {
            __stcg(to + 32 * n,
                   partOf(sums[m][2 * n], sums[m][2 * n + 1], factor[m]));
          }
        }
      }
    }
    if (warp == 0) keep(taken[1 - turn], next, nextEntry);
  }
}
