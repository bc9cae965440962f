// dK and dV as flash-backward-keys.cu, for dense views on Hopper: 64 keys are
// the rows of a warpgroup's products, N rows of queries at a time their columns.
#include "hopper.cuh"

constexpr int QUERIES_SIZE = tileSize(N, KEY);
constexpr int STAGE_SIZE = QUERIES_SIZE + tileSize(N, VALUE);

struct Barriers {
  Mbarrier keys, keysFree;
  Mbarrier rows[STAGES], rowsFree[STAGES];
};

/**
 * ROWS keys of a head, and the rows of queries that see any of them, or this
 * split's share: the first keys are seen by most. Every query has its key:
 * position and number of a query are one.
 */
struct KeyTile {
  Sequence s;
  int keyHead, split;
  int firstKey, endKey;
  /** Row 0 is of this query. */
  int origin, first, end;

  /** False where there are no such keys. */
  __device__ bool open(const Call &u, int number, int splits, int sequences) {
    split = number % splits;
    int rest = number / splits;
    keyHead = rest % u.keyHeads;
    rest /= u.keyHeads;
    s = u.sequences[rest % sequences];
    firstKey = rest / sequences * ROWS;
    endKey = min(firstKey + ROWS, keyCount(u, s));
    if (firstKey >= endKey) return false;
    origin = min(seenFrom(u, firstKey), s.queryCount);
    int total = (seenEnd(u, endKey - 1) - origin) * UNIT;
    int each = ((total + N - 1) / N + splits - 1) / splits * N;
    first = split * each;
    end = min(first + each, total);
    return true;
  }
  /** The first query that sees a key, and the one behind the last. */
  __device__ static int seenFrom(const Call &u, int key) {
    return VIEW == COMPRESSED ? key * u.stride + u.length - 1 : key;
  }
  __device__ int seenEnd(const Call &u, int key) const {
    int end = VIEW == ATTENTION ? min(key + u.window, s.queryCount) : s.queryCount;
    return max(end, origin);
  }
  /** Rows from `base` on. */
  __device__ QueryRows rows(const Call &u, int base) const {
    return {s.queryStart + origin, u.heads, keyHead * UNIT, base, end - base};
  }
  /** Rows `from ..` that see a key, as many as `count`. */
  __device__ void look(const Call &u, int key, int &from, int &count) const {
    from = (seenFrom(u, key) - origin) * UNIT;
    count = max((seenEnd(u, key) - origin) * UNIT - from, 0);
  }
};

__device__ inline void copyAll(const Call &u, const T *dO,
                               const float2 *statistics, T *tileK, T *tileV,
                               T *stages, float (&known)[STAGES][2 * N],
                               Barriers &barriers, int count, int splits,
                               int sequences) {
  Copies copies = {0};
  Turn turn = {0, 0};
  unsigned parity = 0;
  int thread = threadIdx.x % GROUP;
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    KeyTile tile;
    if (!tile.open(u, number, splits, sequences)) continue;
    Source from = sourceOf(u, tile.s, tile.keyHead);
    copies.claim(&barriers.keysFree, parity);
    copyTile<ROWS, 0, WIDTH>(tileK, from.k, from.keyStride, tile.firstKey,
                             tile.endKey);
#if ROPE > 0
    copyTile<ROWS, WIDTH, ROPE>(tileK, from.kRope, ROPE, tile.firstKey,
                                tile.endKey);
#endif
#if !LATENT
    copyTile<ROWS, 0, VALUE>(tileV, from.v, from.valueStride, tile.firstKey,
                             tile.endKey);
#endif
    copies.commit(&barriers.keys);
    parity ^= 1;
    for (int base = tile.first; base < tile.end; base += N) {
      T *stage = stages + turn.stage * STAGE_SIZE;
      QueryRows rows = tile.rows(u, base);
      copies.claim(&barriers.rowsFree[turn.stage], turn.parity);
      copyChunks<N, 0, WIDTH>(stage, u.q, WIDTH, rows);
#if ROPE > 0
      copyChunks<N, WIDTH, ROPE>(stage, u.qRope, ROPE, rows);
#endif
      copyChunks<N, 0, VALUE>(stage + QUERIES_SIZE, dO, VALUE, rows);
      if (thread < N) {
        int row = rows.numberOf(thread);
        const float *from = &statistics[row].x;
        cpAsync4(&known[turn.stage][thread], from, row >= 0);
        cpAsync4(&known[turn.stage][N + thread], from + 1, row >= 0);
      }
      copies.commit(&barriers.rows[turn.stage]);
      turn.next();
    }
  }
  copies.announce<0>();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperBackwardKeys(Call u, const T *dO, const float2 *statistics, T *dK,
                       T *dV, f32 *dKRope, f32 *partsK, f32 *partsV, int count,
                       int splits, int sequences) {
  extern __shared__ int4 memory[];
  __shared__ Barriers barriers;
  // The rows' LSE, then their dO . o: of two columns at a time, as reading
  // shared memory is the limit.
  __shared__ __align__(16) float known[STAGES][2 * N];
  T *tileK = tilesIn(memory);
  T *tileV = LATENT ? tileK : tileK + tileSize(ROWS, KEY);
  T *stages = tileV + tileSize(ROWS, LATENT ? KEY : VALUE);
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy; warps that compute.
    initBarrier(&barriers.keys, 4);
    initBarrier(&barriers.keysFree, 4 * GROUPS);
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&barriers.rows[n], 4);
      initBarrier(&barriers.rowsFree[n], 4 * GROUPS);
    }
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING>();
    copyAll(u, dO, statistics, tileK, tileV, stages, known, barriers, count,
            splits, sequences);
    return;
  }
  takeRegisters<COMPUTING>();

  int row = 64 * group + threadIdx.x % GROUP / 32 * 16 + laneRow();
  float scale = u.scale * LOG2_E;
  MatrixPlace placeK = placeOf<ROWS>(tileK) + 64 * group * 128 / 16;
  MatrixPlace placeV = placeOf<ROWS>(tileV) + 64 * group * 128 / 16;
  MatrixPlace placeQ = placeOf<N>(stages);
  MatrixPlace placeO = placeOf<N>(stages + QUERIES_SIZE);
  Turn turn = {0, 0};
  unsigned parity = 0;
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    KeyTile tile;
    if (!tile.open(u, number, splits, sequences)) continue;
    // The lane's keys.
    LaneRows seeing;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int key = tile.firstKey + row + 8 * half;
      tile.look(u, key, seeing.first[half], seeing.count[half]);
    }
    SeenRows seen = SeenRows::of(u, tile, tile.firstKey + 64 * group);
    float sumsK[KEY / 8][4];
    float sumsV[VALUE / 8][4];
    clear(sumsK);
    clear(sumsV);
    await(&barriers.keys, parity);
    parity ^= 1;
    for (int base = tile.first; base < tile.end; base += N) {
      await(&barriers.rows[turn.stage], turn.parity);
      Turn now = turn;
      turn.next();
      if (base < seen.someEnd && base + N > seen.someFirst) {
        int stage = now.stage * (STAGE_SIZE * 2 / 16);
        const float *logs = known[now.stage];
        float2 two[N / 8];
        float p[N / 8][4], dP[N / 8][4];
        unsigned weights[N / 16][4], dS[N / 16][4];
        wgmmaFence();
        multiplyTiles<KEY, ROWS, N>(p, placeK, placeQ + stage);
        wgmmaCommit();
        multiplyTiles<VALUE, ROWS, N>(dP, placeV, placeO + stage);
        wgmmaCommit();
        wgmmaWait<1>();
        hold(p);
        loadColumns(two, logs);
        weighColumns(p, two, scale);
        // Rows that are none have q, dO and statistics of 0: they add 0.
        if (base < seen.allFirst || base + N > seen.allEnd) seeing.hide(p, 0, base);
        operandsOf(weights, p);
        hold(weights);
        hold(sumsV);
        wgmmaFence();
        multiplyWeights(sumsV, weights, placeO + stage, 1);
        wgmmaCommit();
        wgmmaWait<1>();
        hold(dP);
        loadColumns(two, logs + N);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
          float delta[2] = {two[n].x, two[n].y};
#pragma unroll
          for (int e = 0; e < 4; e++) p[n][e] *= dP[n][e] - delta[e % 2];
        }
        operandsOf(dS, p);
        hold(dS);
        hold(sumsK);
        wgmmaFence();
        multiplyWeights(sumsK, dS, placeQ + stage, 1);
        wgmmaCommit();
        wgmmaWait<0>();
        hold(sumsV);
        hold(sumsK);
        hold(weights);
        hold(dS);
      }
      arriveWarp(&barriers.rowsFree[now.stage]);
    }
    arriveWarp(&barriers.keysFree);

#pragma unroll
    for (int half = 0; half < 2; half++) {
      int key = tile.firstKey + row + 8 * half;
      bool isKey = key < tile.endKey;
      i64 at = ((i64)keyStart(tile.s) + key) * u.keyHeads + tile.keyHead;
      i64 part = at * splits + tile.split;
      // Where the walk is shared out, its part in f32.
      if (splits > 1 && isKey) {
#pragma unroll
        for (int n = 0; n < VALUE / 8; n++) {
          storePair(partsV + part * VALUE + 8 * n + laneColumn(),
                    sumsV[n][2 * half], sumsV[n][2 * half + 1]);
        }
      }
      if (splits == 1) {
        emitRow(sumsV, half, 1, [&](int c, unsigned low, unsigned high) {
          if (isKey) storeFour(dV + at * VALUE + c, low, high);
        });
        emitRow(sumsK, half, u.scale, [&](int c, unsigned low, unsigned high) {
          if (isKey && c < WIDTH) storeFour(dK + at * WIDTH + c, low, high);
        });
      }
      if (!isKey) continue;
#pragma unroll
      for (int n = 0; n < KEY / 8; n++) {
        if (8 * n < WIDTH && splits == 1) continue;
        int c = 8 * n + laneColumn();
        f32 *to = 8 * n < WIDTH ? partsK + part * WIDTH + c
                                : dKRope + part * ROPE + c - WIDTH;
        storePair(to, sumsK[n][2 * half] * u.scale,
                  sumsK[n][2 * half + 1] * u.scale);
      }
    }
  }
}
