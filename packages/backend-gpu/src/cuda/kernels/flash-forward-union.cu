// o = softmax(scores) v of selected attention where a list has 16 rows or fewer,
// for 16-bit types. Lists of neighbours have blocks in common, so a block of
// threads walks over the union of eight: each block of keys comes once, and
// those warps compute with it whose list has it. A warp has a list.
//
// Two tiles a round, two rounds ahead: in a round a warp may have none or two,
// and all wait for the last one.
#include "flash-softmax.cuh"

static_assert(ROWS == 16 * WARPS && BLOCK == N, "a list a warp, a block a tile");

constexpr int LIST_ROWS = SHARING * UNIT;
static_assert(LIST_ROWS <= 16, "one row tile");

/** Tiles of a round. */
constexpr int PER_ROUND = 2;
constexpr int ROUNDS = STAGES / PER_ROUND;

/** Fills the rows of a warp's leader; false where it has none. */
__device__ inline bool openList(const Call &u, const Sequence &s, int leader,
                                int head0, RowTable<ROWS> &rows) {
  int past = s.keyCount - s.queryCount;
  int leaderAt = (past / SHARING + leader) * SHARING;
  int firstQuery = max(leaderAt - past, 0);
  int end = min(leaderAt + SHARING, s.keyCount) - past;
  int count = max(end - firstQuery, 0) * UNIT;
  int i = threadIdx.x % 32;
  if (i < 16) {
    rows.set(u, s, threadIdx.x / 32 * 16 + i, i < count, firstQuery + i / UNIT,
             head0 + i % UNIT);
  }
  return count > 0;
}

/** Blocks of some lists, ascending, and for each which lists have it. */
struct Union {
  int *blocks;
  unsigned *lists;
  // A bit a block, and how many are set before each word.
  unsigned *words;
  int *before;

  /** How many there are; all threads. `list` is the warp's, or null. */
  __device__ int fill(const int *list, int length, int keys, int wordCount) {
    __shared__ int total;
    int lane = threadIdx.x % 32;
    int warp = threadIdx.x / 32;
    for (int i = threadIdx.x; i < wordCount; i += THREADS) words[i] = 0;
    for (int i = threadIdx.x; i < WARPS * length; i += THREADS) lists[i] = 0;
    __syncthreads();
    auto blockAt = [&](int i) {
      int block = list[i];
      return block >= 0 && block * BLOCK < keys ? block : -1;
    };
    for (int i = lane; list && i < length; i += 32) {
      int block = blockAt(i);
      if (block >= 0) atomicOr(words + block / 32, 1u << block % 32);
    }
    __syncthreads();
    if (warp == 0) {
      int done = 0;
      for (int base = 0; base < wordCount; base += 32) {
        int count = base + lane < wordCount ? __popc(words[base + lane]) : 0;
        int sum = count;
        for (int reach = 1; reach < 32; reach *= 2) {
          int other = __shfl_up_sync(0xffffffff, sum, reach);
          if (lane >= reach) sum += other;
        }
        if (base + lane < wordCount) before[base + lane] = done + sum - count;
        done += __shfl_sync(0xffffffff, sum, 31);
      }
      if (lane == 0) total = done;
    }
    __syncthreads();
    for (int i = lane; list && i < length; i += 32) {
      int block = blockAt(i);
      if (block < 0) continue;
      unsigned below = words[block / 32] & ((1u << block % 32) - 1);
      int place = before[block / 32] + __popc(below);
      // Bits only ever rise, and all write the same block.
      blocks[place] = block;
      atomicOr(lists + place, 1u << warp);
    }
    __syncthreads();
    return total;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashForwardUnion(Call u, T *o, float *lse, int words) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  T *stages = (T *)memory;
  // In the place of the last round, which comes after the queries are read.
  T *tileQ = stages + (STAGES - PER_ROUND) * STAGE;
  int *behind = (int *)(stages + STAGES * STAGE);
  int most = WARPS * u.count;
  Union all = {behind, (unsigned *)behind + most, (unsigned *)behind + 2 * most,
               behind + 2 * most + words};

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * UNIT;
  Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
  int warp = threadIdx.x / 32;
  // The last rows walk furthest, so they start first.
  int leader = (gridDim.x - 1 - blockIdx.x) * WARPS + warp;
  bool hasRows = openList(u, s, leader, head0, rows);
  if (!__syncthreads_or(hasRows)) return;
  copyQueries<KEY, 0, WIDTH>(tileQ, u.q, rows);
#if ROPE > 0
  copyQueries<KEY, WIDTH, ROPE>(tileQ, u.qRope, rows);
#endif
  cpAsyncCommit();
  int count = all.fill(hasRows ? listOf(u, s, leader, head0) : 0, u.count,
                       s.keyCount, words);
  Walk walk = {0, count * BLOCK, all.blocks, s.keyCount};
  auto copyRound = [&](int round) {
#pragma unroll
    for (int t = 0; t < PER_ROUND; t++) {
      int tile = round * PER_ROUND + t;
      if (tile >= count) continue;
      copyKeys(stages + (round % ROUNDS * PER_ROUND + t) * STAGE, from, walk,
               tile * N);
    }
    cpAsyncCommit();
  };
#pragma unroll
  for (int n = 0; n < ROUNDS - 1; n++) copyRound(n);

  __shared__ Sight sights[WARPS];
  sights[warp].set(rows, 16 * warp);
  cpAsyncWait<ROUNDS - 1>();
  __syncthreads();
  unsigned queries[KEY / 16][4];
  Lane<KEY> queryLane = firstOperand<KEY>(tileQ + 16 * warp * KEY);
#pragma unroll
  for (int k = 0; k < KEY / 16; k++) queryLane.load<false>(queries[k], 0, k);

  float scale = u.scale * LOG2_E;
  Softmax softmax;
  for (int round = 0; round * PER_ROUND < count; round++) {
    cpAsyncWait<ROUNDS - 2>();
    __syncthreads();
    // Into the place of the round before, with which all are done.
    copyRound(round + ROUNDS - 1);
    for (int t = 0; t < PER_ROUND; t++) {
      int tile = round * PER_ROUND + t;
      if (tile >= count || (all.lists[tile] >> warp & 1) == 0) continue;
      const T *tileK = stages + (round % ROUNDS * PER_ROUND + t) * STAGE;
      const T *tileV = LATENT ? tileK : tileK + N * KEY;
      bool none, whole;
      sights[warp].look<N>(walk, tile * N, none, whole);
      if (none) continue;

      float scores[1][N / 8][4];
      clear(scores);
      auto first = [&](unsigned (&a)[4], int, int k) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[e] = queries[k][e];
      };
      multiplyRows<N, KEY, KEY / 16>(scores, first, secondOperand<KEY>(tileK));
      if (!whole) {
        hideUnseen<N>(scores[0], -INFINITE, rows, 16 * warp, walk, tile * N);
      }
      softmax.weigh(scores, scale);
      multiplyColumns<VALUES, N>(
          softmax.sums, scores, secondTransposed<LATENT ? KEY : VALUES>(tileV));
    }
  }
  cpAsyncWait<0>();
  __syncthreads();

  softmax.close(rows, {0, 1}, lse);
  emitRows<VALUES, VALUE>(softmax.sums, memory, [&](int row, int c, float x, float y) {
    int index = rows.index[row];
    if (index >= 0) storePair(o + (i64)index * VALUE + c, x, y);
  });
}
