// dQ as flash-backward-queries.cu, for dense views on Hopper: the next tile's
// scores and dP are on their way while dQ takes those of this one.
#include "hopper.cuh"

constexpr int KEYS_SIZE = tileSize(N, KEY);
constexpr int VALUES_SIZE = LATENT ? 0 : tileSize(N, VALUE);
constexpr int STAGE_SIZE = KEYS_SIZE + VALUES_SIZE;

struct Barriers {
  Mbarrier rows, rowsFree;
  Mbarrier keys[STAGES], keysFree[STAGES];
};

/** Two neighbours of a row of sums. */
__device__ inline void addPair(float (&x)[4], int half, float factor,
                               unsigned two) {
  float low, high;
  unpack(low, high, two, T());
  x[2 * half] = x[2 * half] * factor + low;
  x[2 * half + 1] = x[2 * half + 1] * factor + high;
}
/**
 * x = x factor + plus, of such a row, -1 for none. A lane loads what `emitRow` has
 * it store, and lanes change halves back.
 */
template <int COLUMNS>
__device__ inline void addPlus(float (&x)[COLUMNS][4], int half, float factor,
                               const QueryGradients &d, i64 row) {
  bool isOdd = threadIdx.x & 1;
  int column = laneColumn() / 4 * 4 + (isOdd ? 8 : 0);
  const T *from = d.plus + row * WIDTH;
#pragma unroll
  for (int n = 0; n < COLUMNS; n += 2) {
    int c = 8 * n + column;
    uint2 four = make_uint2(0, 0);
    if (row >= 0 && c < WIDTH) four = __ldg((const uint2 *)(from + c));
    unsigned given = isOdd ? four.x : four.y;
    unsigned taken = __shfl_xor_sync(0xffffffff, given, 1);
    addPair(x[n], half, factor, isOdd ? taken : four.x);
    addPair(x[n + 1], half, factor, isOdd ? four.y : taken);
  }
}

__device__ inline void copyAll(const Call &u, const T *dO, T *tileQ, T *tileO,
                               T *stages, Barriers &barriers, int count,
                               int tiles, int sequences) {
  Copies copies = {0};
  Turn turn = {0, 0};
  unsigned parity = 0;
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    DenseTile tile;
    if (!tile.open(u, number, tiles, sequences)) continue;
    Source from = sourceOf(u, tile.s, tile.head0 / (u.heads / u.keyHeads));
    QueryRows rows = tile.rows(u);
    copies.claim(&barriers.rowsFree, parity);
    copyChunks<ROWS, 0, WIDTH>(tileQ, u.q, WIDTH, rows);
#if ROPE > 0
    copyChunks<ROWS, WIDTH, ROPE>(tileQ, u.qRope, ROPE, rows);
#endif
    copyChunks<ROWS, 0, VALUE>(tileO, dO, VALUE, rows);
    copies.commit(&barriers.rows);
    parity ^= 1;
    for (int base = tile.first; base < tile.end; base += N) {
      T *stage = stages + turn.stage * STAGE_SIZE;
      copies.claim(&barriers.keysFree[turn.stage], turn.parity);
      copyTile<N, 0, WIDTH>(stage, from.k, from.keyStride, base, tile.end);
#if ROPE > 0
      copyTile<N, WIDTH, ROPE>(stage, from.kRope, ROPE, base, tile.end);
#endif
#if !LATENT
      copyTile<N, 0, VALUE>(stage + KEYS_SIZE, from.v, from.valueStride, base,
                            tile.end);
#endif
      copies.commit(&barriers.keys[turn.stage]);
      turn.next();
    }
  }
  copies.announce<0>();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopperBackwardQueries(Call u, const T *dO, const float2 *statistics,
                          QueryGradients d, int count, int tiles,
                          int sequences) {
  extern __shared__ int4 memory[];
  __shared__ Barriers barriers;
  T *tileQ = tilesIn(memory);
  T *tileO = tileQ + tileSize(ROWS, KEY);
  T *stages = tileO + tileSize(ROWS, VALUE);
  int group = warpgroup();
  if (threadIdx.x == 0) {
    // Warps that copy; warps that compute.
    initBarrier(&barriers.rows, 4);
    initBarrier(&barriers.rowsFree, 4 * GROUPS);
    for (int n = 0; n < STAGES; n++) {
      initBarrier(&barriers.keys[n], 4);
      initBarrier(&barriers.keysFree[n], 4 * GROUPS);
    }
  }
  __syncthreads();
  if (group == GROUPS) {
    giveRegisters<COPYING>();
    copyAll(u, dO, tileQ, tileO, stages, barriers, count, tiles, sequences);
    return;
  }
  takeRegisters<COMPUTING>();

  int row = 64 * group + threadIdx.x % GROUP / 32 * 16 + laneRow();
  float scale = u.scale * LOG2_E;
  MatrixPlace placeQ = placeOf<ROWS>(tileQ) + 64 * group * 128 / 16;
  MatrixPlace placeO = placeOf<ROWS>(tileO) + 64 * group * 128 / 16;
  MatrixPlace placeK = placeOf<N>(stages);
  MatrixPlace placeV = placeOf<N>(stages + (LATENT ? 0 : KEYS_SIZE));
  Turn turn = {0, 0};
  unsigned parity = 0;
  for (int round = 0, number; (number = turnOf(round)) < count; round++) {
    DenseTile tile;
    if (!tile.open(u, number, tiles, sequences)) continue;
    LaneRows rows;
    rows.set(u, tile, row);
    Whole whole;
    whole.set(u, tile, 64 * group);
    // LSE in units of a factor 2, and dO . o.
    float log[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int index = tile.rows(u).numberOf(row + 8 * half);
      float2 known = index < 0 ? make_float2(0, 0) : statistics[index];
      log[half] = known.x * LOG2_E;
      delta[half] = known.y;
    }
    float sums[KEY / 8][4];
    await(&barriers.rows, parity);
    parity ^= 1;
    if (tile.first < tile.end) {
      float p[N / 8][4], dP[N / 8][4];
      unsigned dS[N / 16][4];
      auto start = [&] {
        int stage = turn.stage * (STAGE_SIZE * 2 / 16);
        await(&barriers.keys[turn.stage], turn.parity);
        wgmmaFence();
        multiplyTiles<KEY, ROWS, N>(p, placeQ, placeK + stage);
        wgmmaCommit();
        multiplyTiles<VALUE, ROWS, N>(dP, placeO, placeV + stage);
        wgmmaCommit();
      };
      auto startSums = [&](const Turn &at, int more) {
        wgmmaFence();
        multiplyWeights(sums, dS, placeK + at.stage * (STAGE_SIZE * 2 / 16),
                        more);
        wgmmaCommit();
      };
      auto weigh = [&](int base) {
        hold(p);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            p[n][e] = exp2Fast(p[n][e] * scale - log[e / 2]);
          }
        }
        if (!whole.has(base)) rows.hide(p, 0, base);
      };
      auto differ = [&] {
        hold(dP);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) p[n][e] *= dP[n][e] - delta[e / 2];
        }
      };
      start();
      wgmmaWait<1>();
      weigh(tile.first);
      wgmmaWait<0>();
      differ();
      operandsOf(dS, p);
      Turn before = turn;
      turn.next();
      for (int base = tile.first + N; base < tile.end; base += N) {
        start();
        hold(dS);
        hold(sums);
        startSums(before, base > tile.first + N);
        wgmmaWait<2>();
        weigh(base);
        wgmmaWait<1>();
        differ();
        wgmmaWait<0>();
        hold(sums);
        hold(dS);
        arriveWarp(&barriers.keysFree[before.stage]);
        operandsOf(dS, p);
        before = turn;
        turn.next();
      }
      hold(dS);
      hold(sums);
      startSums(before, tile.first + N < tile.end);
      wgmmaWait<0>();
      hold(sums);
      arriveWarp(&barriers.keysFree[before.stage]);
    } else {
      clear(sums);
    }
    arriveWarp(&barriers.rowsFree);

#pragma unroll
    for (int half = 0; half < 2; half++) {
      i64 index = tile.rows(u).numberOf(row + 8 * half);
      // What is added must not be multiplied.
      if (PLUS) addPlus(sums, half, u.scale, d, index);
      emitGradient(sums, half, PLUS ? 1 : u.scale, d, index, 0);
    }
  }
}
