// The importance of blocks for 16-bit types: the probabilities of compressed
// attention once more, from the known LSE, and of each row's only its group's
// sum. A block of threads has some leaders of one group, so that a tile of keys
// serves all of them; 16 heads are one row tile.
#include "flash.cuh"
#include "ranks.cuh"

/** Row tiles of a leader; l' / d and l / d. */
constexpr int TILES = HEAD_TILES;
constexpr int M = BLOCK_STRIDES;
constexpr int K = LENGTH_STRIDES;
constexpr int LEADERS = ROWS / 16 / TILES;
/** Probabilities of the tile before that a block may need. */
constexpr int CARRY = 32;

/**
 * The sums over a tile's rows of N columns: of the lanes with the same columns
 * each ends with two of them, lane row g with 8 g + laneColumn() and the next.
 */
__device__ inline float2 sumRows(const float (&p)[N / 8][4],
                                 const float (&more)[N / 8][4]) {
  static_assert(N == 64, "eight columns for each of eight lanes");
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    x[i] = p[i / 2][i % 2] + p[i / 2][2 + i % 2];
    if (TILES == 2) x[i] += more[i / 2][i % 2] + more[i / 2][2 + i % 2];
  }
  halve<8>(x);
  halve<4>(x);
  halve<2>(x);
  return make_float2(x[0], x[1]);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashImportance(Call u, const float *lse, float *importance, Ranks ranks) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  __shared__ float logs[ROWS];
  // p of a tile's keys, behind the last ones of the tile before.
  __shared__ float windows[LEADERS][CARRY + N];
  T *stages = (T *)memory;
  T *tileQ = stages + STAGES * STAGE;

  Sequence s = u.sequences[blockIdx.z];
  int past = s.keyCount - s.queryCount;
  int group = blockIdx.y;
  int share = u.heads / ranks.groups;
  // The last leaders see most, so they start first.
  int number = ranks.first + (gridDim.x - 1 - blockIdx.x) * LEADERS;
  int leader = past / u.sharing + number;
  if (leader * u.sharing >= s.keyCount || s.queryCount == 0) return;
  if (threadIdx.x < ROWS) {
    int t = (leader + threadIdx.x / (16 * TILES)) * u.sharing;
    int head = threadIdx.x % (16 * TILES);
    bool isRow = head < share && t >= past && t < s.keyCount;
    rows.set(u, s, threadIdx.x, isRow, t - past, group * share + head);
    int index = rows.index[threadIdx.x];
    float known = index < 0 ? -INFINITE : lse[index];
    // Of a row that is none every probability is 2^-inf.
    logs[threadIdx.x] = known == -INFINITE ? INFINITE : known * LOG2_E;
  }
  for (int x = threadIdx.x; x < LEADERS * CARRY; x += THREADS) {
    windows[x / CARRY][x % CARRY] = 0;
  }
  __syncthreads();
  int lastLeader = min(min(leader + LEADERS, past / u.sharing + ranks.first +
                                                 ranks.count) - 1,
                       (s.keyCount - 1) / u.sharing);
  Walk walk = {0, lastSeen(u, lastLeader * u.sharing) + 1, 0, 0};
  int end = (lastLeader * u.sharing / u.blockSize + 1) * M;
  Source from = sourceOf(u, s, group * share / (u.heads / u.keyHeads));
  copyQueries<KEY, 0, WIDTH>(tileQ, u.q, rows);
#if ROPE > 0
  copyQueries<KEY, WIDTH, ROPE>(tileQ, u.qRope, rows);
#endif
  clearColumns<KEY, ROWS, WIDTH + ROPE>(tileQ);
  clearStages(stages);
#pragma unroll
  for (int n = 0; n < STAGES - 1; n++) {
    copyKeys(stages + n * STAGE, from, walk, n * N);
    cpAsyncCommit();
  }

  int warpTile = threadIdx.x / 32 * ROW_TILES;
  int lane = threadIdx.x % 32;
  __shared__ Sight sights[WARPS];
  const Sight &sight = sights[threadIdx.x / 32];
  sights[threadIdx.x / 32].set(rows, 16 * warpTile);
  Lane<KEY> queryLane = firstOperand<KEY>(tileQ + 16 * warpTile * KEY);
  float scale = u.scale * LOG2_E;
  int stage = 0;
  for (int base = 0; base < end; base += N) {
    awaitCopies<STAGES - 2>();
    int ahead = stage == 0 ? STAGES - 1 : stage - 1;
    copyKeys(stages + ahead * STAGE, from, walk, base + (STAGES - 1) * N);
    cpAsyncCommit();
    const T *tileK = stages + stage * STAGE;
    stage = stage == STAGES - 1 ? 0 : stage + 1;

    float p[ROW_TILES][N / 8][4];
    clear(p);
    bool none, whole;
    sight.look<N>(walk, base, none, whole);
    if (!none) {
      auto first = [&](unsigned (&a)[4], int tile, int column) {
        queryLane.load<false>(a, 16 * tile, column);
      };
      multiplyRows<N, KEY, 4>(p, first, secondOperand<KEY>(tileK));
#pragma unroll
      for (int tile = 0; tile < ROW_TILES; tile++) {
        int row = 16 * (warpTile + tile) + laneRow();
        float log[2] = {logs[row], logs[row + 8]};
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            p[tile][n][e] = exp2Fast(p[tile][n][e] * scale - log[e / 2]);
          }
        }
        if (!whole) {
          hideUnseen<N>(p[tile], 0, rows, 16 * (warpTile + tile), walk, base);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile += TILES) {
      float2 sums = sumRows(p[tile], p[tile + TILES - 1]);
      float *window = windows[(warpTile + tile) / TILES] + CARRY;
      *(float2 *)(window + 8 * laneRow() + laneColumn()) = sums;
    }
    __syncwarp();
    // P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k]
    for (int x = lane; x < ROW_TILES / TILES * (N / M); x += 32) {
      int own = warpTile / TILES + x / (N / M);
      int at = x % (N / M);
      int t = (leader + own) * u.sharing;
      int j = base / M + at;
      bool isHere = t >= past && leader + own <= lastLeader;
      if (!isHere || j * u.blockSize > t) continue;
      const float *window = windows[own] + CARRY + at * M;
      float sum = 0;
#pragma unroll
      for (int offset = 1 - K; offset < M; offset++) {
        sum += pairsAt(offset, M, K) * window[offset];
      }
      i64 row = ranks.rowOf(s, number + own) * ranks.groups + group;
      importance[row * ranks.places + j] = sum;
    }
    __syncwarp();
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile += TILES) {
      float *window = windows[(warpTile + tile) / TILES];
      window[lane] = window[N + lane];
    }
  }
}
