// The importance of blocks as flash-importance.cu, on Hopper: a warp has a
// leader's 16 heads, and its warpgroup's product the leaders of four warps.
#include "hopper.cuh"
#include "ranks.cuh"

/** l' / d and l / d. */
constexpr int M = BLOCK_STRIDES;
constexpr int K = LENGTH_STRIDES;
constexpr int LEADERS = ROWS / 16;
/** Probabilities of the tile before that a block may need. */
constexpr int CARRY = 32;
constexpr int KEYS_SIZE = tileSize(N, KEY);

/** Some leaders of one group, the last ones first: they see most. */
struct LeaderTile {
  Sequence s;
  int sequence, group;
  /** The first one, its number in this launch, and the last one. */
  int leader, number, last;
  /** Keys that any of them sees, and the end of all of their blocks. */
  int seen, end;

  /** False where there are no such leaders. */
  __device__ bool open(const Call &u, const Ranks &ranks, int tile, int tiles,
                       int sequences) {
    int rest = tile % (ranks.groups * sequences);
    sequence = rest / ranks.groups;
    s = u.sequences[sequence];
    group = rest % ranks.groups;
    number = ranks.first +
             (tiles - 1 - tile / (ranks.groups * sequences)) * LEADERS;
    leader = past() / u.sharing + number;
    if (leader * u.sharing >= s.keyCount || s.queryCount == 0) return false;
    last = min(min(leader + LEADERS,
                   past() / u.sharing + ranks.first + ranks.count) - 1,
               (s.keyCount - 1) / u.sharing);
    seen = lastSeen(u, last * u.sharing) + 1;
    end = (last * u.sharing / u.blockSize + 1) * M;
    return true;
  }
  __device__ int past() const { return s.keyCount - s.queryCount; }
  /** The number of row i in q; -1 for none. */
  __device__ int indexOf(const Call &u, int i) const {
    int t = (leader + i / 16) * u.sharing;
    bool isRow = i % 16 < UNIT && t >= past() && t < s.keyCount;
    return isRow ? (s.queryStart + t - past()) * u.heads + group * UNIT + i % 16
                 : -1;
  }
};

__device__ inline void copyAll(const Call &u, const Ranks &ranks, T *tileQ,
                               T *stages, Mbarrier *queries, Mbarrier *keys,
                               int count, int tiles, int sequences) {
  Copies copies = {0};
  Turn turn = {0, 0};
  unsigned parity = 0;
  clearBehind<ROWS, WIDTH + ROPE>(tileQ);
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    clearBehind<N, WIDTH + ROPE>(stages + n * KEYS_SIZE);
  }
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    LeaderTile tile;
    if (!tile.open(u, ranks, number, tiles, sequences)) continue;
    Source from =
        sourceOf(u, tile.s, tile.group * UNIT / (u.heads / u.keyHeads));
    auto rowOf = [&](int i) { return tile.indexOf(u, i); };
    copies.claim(queries + 1, parity);
    copyChunks<ROWS, 0, WIDTH>(tileQ, u.q, WIDTH, rowOf);
#if ROPE > 0
    copyChunks<ROWS, WIDTH, ROPE>(tileQ, u.qRope, ROPE, rowOf);
#endif
    copies.commit(queries);
    parity ^= 1;
    for (int base = 0; base < tile.end; base += N) {
      T *stage = stages + turn.stage * KEYS_SIZE;
      copies.claim(keys + STAGES + turn.stage, turn.parity);
      copyTile<N, 0, WIDTH>(stage, from.k, from.keyStride, base, tile.seen);
#if ROPE > 0
      copyTile<N, WIDTH, ROPE>(stage, from.kRope, ROPE, base, tile.seen);
#endif
      copies.commit(keys + turn.stage);
      turn.next();
    }
  }
  copies.announce<0>();
}

/**
 * The sums over a warp's rows of 64 columns: of the lanes with the same columns
 * each ends with two of them, lane row g with 8 g + laneColumn() and the next.
 */
__device__ inline float2 sumRows(const float (&p)[N / 8][4], int first) {
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const float(&four)[4] = p[first / 8 + i / 2];
    x[i] = four[i % 2] + four[2 + i % 2];
  }
  halve<8>(x);
  halve<4>(x);
  halve<2>(x);
  return make_float2(x[0], x[1]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperImportance(Call u, const float *lse, float *importance, Ranks ranks,
                     int count, int tiles, int sequences) {
  extern __shared__ int4 memory[];
  // Each is followed by those of places that are free again.
  __shared__ Mbarrier queries[2];
  __shared__ Mbarrier keys[2 * STAGES];
  // p of a tile's keys, behind the last ones of the tile before.
  __shared__ float windows[LEADERS][CARRY + N];
  T *tileQ = tilesIn(memory);
  T *stages = tileQ + tileSize(ROWS, KEY);
  int group = warpgroup();
  if (threadIdx.x == 0) {
    initBarrier(queries, 4);
    initBarrier(queries + 1, 4 * GROUPS);
    for (int n = 0; n < STAGES; n++) {
      initBarrier(keys + n, 4);
      initBarrier(keys + STAGES + n, 4 * GROUPS);
    }
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING>();
    copyAll(u, ranks, tileQ, stages, queries, keys, count, tiles, sequences);
    return;
  }
  takeRegisters<COMPUTING>();

  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  float *window = windows[warp] + CARRY;
  float scale = u.scale * LOG2_E;
  MatrixPlace placeQ = placeOf<ROWS>(tileQ) + 64 * group * 128 / 16;
  MatrixPlace placeK = placeOf<N>(stages);
  Turn turn = {0, 0};
  unsigned parity = 0;
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    LeaderTile tile;
    if (!tile.open(u, ranks, number, tiles, sequences)) continue;
    int t = (tile.leader + warp) * u.sharing;
    bool isHere = t >= tile.past() && tile.leader + warp <= tile.last;
    int seen = lastSeen(u, t) + 1;
    float log[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int index = tile.indexOf(u, 16 * warp + laneRow() + 8 * half);
      float known = index < 0 ? -INFINITE : lse[index];
      // Of a row that is none every probability is 2^-inf.
      log[half] = known == -INFINITE ? INFINITE : known * LOG2_E;
    }
    window[lane - CARRY] = 0;
    i64 row = ranks.rowOf(tile.s, tile.number + warp, tile.sequence) *
                  ranks.groups + tile.group;
    await(queries, parity);
    parity ^= 1;
    for (int base = 0; base < tile.end; base += N) {
      float p[N / 8][4];
      await(keys + turn.stage, turn.parity);
      wgmmaFence();
      multiplyTiles<KEY, ROWS, N>(p, placeQ,
                                  placeK + turn.stage * (KEYS_SIZE * 2 / 16));
      wgmmaCommit();
      wgmmaWait<0>();
      hold(p);
      arriveWarp(keys + STAGES + turn.stage);
      turn.next();
      if (base + N >= tile.end) arriveWarp(queries + 1);
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          p[n][e] = exp2Fast(p[n][e] * scale - log[e / 2]);
        }
      }
      if (base + N > seen) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            if (base + 8 * n + laneColumn() + e % 2 >= seen) p[n][e] = 0;
          }
        }
      }
#pragma unroll
      for (int first = 0; first < N; first += 64) {
        float2 sums = sumRows(p, first);
        *(float2 *)(window + first + 8 * laneRow() + laneColumn()) = sums;
      }
      __syncwarp();
      // P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k]
#pragma unroll
      for (int at = lane; at < N / M; at += 32) {
        int j = base / M + at;
        if (!isHere || j * u.blockSize > t) continue;
        float sum = 0;
#pragma unroll
        for (int offset = 1 - K; offset < M; offset++) {
          int pairs = min(M - 1, offset + K - 1) - max(0, offset) + 1;
          sum += pairs * window[at * M + offset];
        }
        importance[row * ranks.places + j] = sum;
      }
      __syncwarp();
      window[lane - CARRY] = window[N - CARRY + lane];
    }
  }
}
