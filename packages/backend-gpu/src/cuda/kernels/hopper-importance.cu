// The importance of blocks as flash-importance.cu, on Hopper: a warp's 16 rows
// are the heads of one leader, of two or of four, and its warpgroup's product has
// the leaders of four warps.
#include "hopper.cuh"
#include "ranks.cuh"

/** l' / d and l / d. */
constexpr int M = BLOCK_STRIDES;
constexpr int K = LENGTH_STRIDES;
/** Rows of a leader, 4, 8 or 16, and leaders of a warp. */
constexpr int SHARE = LEADER_ROWS;
constexpr int PACKED = 16 / SHARE;
constexpr int LEADERS = ROWS / SHARE;
/** Probabilities of the tile before that a block may need. */
constexpr int CARRY = 32;
constexpr int QUERIES_SIZE = tileSize(ROWS, KEY);
constexpr int KEYS_SIZE = tileSize(N, KEY);

struct Barriers {
  Mbarrier queries[QUERY_STAGES], queriesFree[QUERY_STAGES];
  Mbarrier keys[STAGES], keysFree[STAGES];
};

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
};

/** The rows of a tile's leaders, as those of queries. */
struct LeaderRows {
  /** Row 0: its leader's position, its number in q. */
  int t, number;
  int sharing, heads, past, end;

  __device__ LeaderRows(const Call &u, const LeaderTile &tile)
      : t(tile.leader * u.sharing), sharing(u.sharing), heads(u.heads),
        past(tile.past()), end(tile.s.keyCount) {
    number = (tile.s.queryStart + t - past) * heads + tile.group * UNIT;
  }
  __device__ bool has(int i) const {
    int at = t + i / SHARE * sharing;
    return i % SHARE < UNIT && at >= past && at < end;
  }
  __device__ int at(int i) const {
    return number + i / SHARE * sharing * heads + i % SHARE;
  }
  __device__ int numberOf(int i) const { return has(i) ? at(i) : -1; }
  template <int STEP, int COUNT> __device__ static constexpr bool isEven() {
    return STEP % SHARE == 0;
  }
  template <int STEP, int COUNT> __device__ int step(int) const {
    return STEP / SHARE * sharing * heads;
  }
};

__device__ inline void copyAll(const Call &u, const Ranks &ranks, T *stagesQ,
                               T *stagesK, Barriers &barriers, int count,
                               int tiles, int sequences) {
  Copies copies = {0};
  TurnOf<QUERY_STAGES> turnQ = {0, 0};
  Turn turn = {0, 0};
#pragma unroll
  for (int n = 0; n < QUERY_STAGES; n++) {
    clearBehind<ROWS, WIDTH + ROPE>(stagesQ + n * QUERIES_SIZE);
  }
#pragma unroll
  for (int n = 0; n < STAGES; n++) {
    clearBehind<N, WIDTH + ROPE>(stagesK + n * KEYS_SIZE);
  }
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    LeaderTile tile;
    if (!tile.open(u, ranks, number, tiles, sequences)) continue;
    Source from =
        sourceOf(u, tile.s, tile.group * UNIT / (u.heads / u.keyHeads));
    LeaderRows rows(u, tile);
    T *tileQ = stagesQ + turnQ.stage * QUERIES_SIZE;
    copies.claim(&barriers.queriesFree[turnQ.stage], turnQ.parity);
    copyChunks<ROWS, 0, WIDTH>(tileQ, u.q, WIDTH, rows);
#if ROPE > 0
    copyChunks<ROWS, WIDTH, ROPE>(tileQ, u.qRope, ROPE, rows);
#endif
    copies.commit(&barriers.queries[turnQ.stage]);
    turnQ.next();
    for (int base = 0; base < tile.end; base += N) {
      T *stage = stagesK + turn.stage * KEYS_SIZE;
      copies.claim(&barriers.keysFree[turn.stage], turn.parity);
      copyTile<N, 0, WIDTH>(stage, from.k, from.keyStride, base, tile.seen);
#if ROPE > 0
      copyTile<N, WIDTH, ROPE>(stage, from.kRope, ROPE, base, tile.seen);
#endif
      copies.commit(&barriers.keys[turn.stage]);
      turn.next();
    }
  }
  copies.announce<0>();
}

/** p of a tile's keys, behind the last ones of the tile before. */
typedef float Window[CARRY + N];

/**
 * The sums over each leader's rows of 64 columns, to the windows of the warp's
 * leaders: of the lanes with the same columns each ends with some of them.
 */
__device__ inline void sumRows(const float (&p)[N / 8][4], int first,
                               Window *windows) {
  int row = laneRow();
#pragma unroll
  for (int half = 0; half < (PACKED == 1 ? 1 : 2); half++) {
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float(&four)[4] = p[first / 8 + i / 2];
      x[i] = PACKED == 1 ? four[i % 2] + four[2 + i % 2] : four[2 * half + i % 2];
    }
    if (PACKED == 4) {
      // Rows 0 to 3 and 4 to 7 are two leaders': those lanes stay apart.
      halve<8, 8>(x);
      halve<4, 4>(x);
      float *to = windows[2 * half + row / 4] + CARRY + first + laneColumn();
      *(float2 *)(to + row % 4 * 16) = make_float2(x[0], x[1]);
      *(float2 *)(to + row % 4 * 16 + 8) = make_float2(x[2], x[3]);
    } else {
      halve<8>(x);
      halve<4>(x);
      halve<2>(x);
      float *to = windows[half] + CARRY + first + laneColumn();
      *(float2 *)(to + row * 8) = make_float2(x[0], x[1]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperImportance(Call u, const float *lse, float *importance, Ranks ranks,
                     int count, int tiles, int sequences) {
  extern __shared__ int4 memory[];
  __shared__ Barriers barriers;
  __shared__ Window windows[LEADERS];
  T *stagesQ = tilesIn(memory);
  T *stagesK = stagesQ + QUERY_STAGES * QUERIES_SIZE;
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy; warps that compute.
    for (int n = 0; n < QUERY_STAGES; n++) {
      initBarrier(&barriers.queries[n], 4);
      initBarrier(&barriers.queriesFree[n], 4 * GROUPS);
    }
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&barriers.keys[n], 4);
      initBarrier(&barriers.keysFree[n], 4 * GROUPS);
    }
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING>();
    copyAll(u, ranks, stagesQ, stagesK, barriers, count, tiles, sequences);
    return;
  }
  takeRegisters<COMPUTING>();

  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  Window *own = windows + warp * PACKED;
  float scale = u.scale * LOG2_E;
  MatrixPlace placesQ = placeOf<ROWS>(stagesQ) + 64 * group * 128 / 16;
  MatrixPlace placesK = placeOf<N>(stagesK);
  TurnOf<QUERY_STAGES> turnQ = {0, 0};
  Turn turn = {0, 0};
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    LeaderTile tile;
    if (!tile.open(u, ranks, number, tiles, sequences)) continue;
    LeaderRows rows(u, tile);
    int leader = tile.leader + warp * PACKED;
    int seenByAll = lastSeen(u, leader * u.sharing) + 1;
    float log[2];
    int seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = laneRow() + 8 * half;
      seen[half] = lastSeen(u, (leader + i / SHARE) * u.sharing) + 1;
      int index = rows.numberOf(16 * warp + i);
      float known = index < 0 ? -INFINITE : lse[index];
      // Of a row that is none every probability is 2^-inf.
      log[half] = known == -INFINITE ? INFINITE : known * LOG2_E;
    }
#pragma unroll
    for (int n = 0; n < PACKED; n++) own[n][lane] = 0;
    await(&barriers.queries[turnQ.stage], turnQ.parity);
    MatrixPlace placeQ = placesQ + turnQ.stage * (QUERIES_SIZE * 2 / 16);
    for (int base = 0; base < tile.end; base += N) {
      float p[N / 8][4];
      await(&barriers.keys[turn.stage], turn.parity);
      wgmmaFence();
      multiplyTiles<KEY, ROWS, N>(p, placeQ,
                                  placesK + turn.stage * (KEYS_SIZE * 2 / 16));
      wgmmaCommit();
      wgmmaWait<0>();
      hold(p);
      arriveWarp(&barriers.keysFree[turn.stage]);
      turn.next();
      if (base + N >= tile.end) {
        arriveWarp(&barriers.queriesFree[turnQ.stage]);
        turnQ.next();
      }
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          p[n][e] = exp2Fast(p[n][e] * scale - log[e / 2]);
        }
      }
      if (base + N > seenByAll) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int key = base + 8 * n + laneColumn() + e % 2;
            if (key >= seen[e / 2]) p[n][e] = 0;
          }
        }
      }
#pragma unroll
      for (int first = 0; first < N; first += 64) sumRows(p, first, own);
      __syncwarp();
      // P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k]
#pragma unroll
      for (int x = lane; x < PACKED * (N / M); x += 32) {
        int n = x / (N / M);
        int at = x % (N / M);
        int t = (leader + n) * u.sharing;
        int j = base / M + at;
        bool isHere = t >= tile.past() && leader + n <= tile.last;
        if (!isHere || j * u.blockSize > t) continue;
        const float *window = own[n] + CARRY;
        float sum = 0;
#pragma unroll
        for (int offset = 1 - K; offset < M; offset++) {
          sum += pairsAt(offset, M, K) * window[at * M + offset];
        }
        i64 row = ranks.rowOf(tile.s, tile.number + warp * PACKED + n,
                              tile.sequence) * ranks.groups + tile.group;
        importance[row * ranks.places + j] = sum;
      }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < PACKED; n++) own[n][lane] = own[n][N + lane];
    }
  }
}
