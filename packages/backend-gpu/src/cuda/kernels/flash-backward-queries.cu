// dQ = scale sum over keys of dS k, dS = p (dO . v - dO . o), for 16-bit types:
// the walk of the forward pass once more, from the known LSE.
#include "flash.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashBackwardQueries(Call u, const T *dO, const float2 *statistics,
                         QueryGradients d) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  // LSE in units of a factor 2, and dO . o.
  __shared__ float2 known[ROWS];
  __shared__ Sight sights[WARPS];
  T *stages = (T *)memory;
  T *tileQ = stages + STAGES * STAGE;
  T *tileO = tileQ + ROWS * KEY;
  int *list = (int *)(tileO + ROWS * VALUES);

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * u.unitHeads;
  Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
  int tile = gridDim.x - 1 - blockIdx.x;
  Walk walk;
  if (!openRows(u, s, tile, head0, rows, walk)) return;
  if (VIEW == SELECTED) keepList(u, walk, list);
  __syncthreads();
  copyQueries<KEY, 0, WIDTH>(tileQ, u.q, rows);
#if ROPE > 0
  copyQueries<KEY, WIDTH, ROPE>(tileQ, u.qRope, rows);
#endif
  copyQueries<VALUES, 0, VALUE>(tileO, dO, rows);
  clearColumns<KEY, ROWS, WIDTH + ROPE>(tileQ);
  clearColumns<VALUES, ROWS, VALUE>(tileO);
  clearStages(stages);
  if (threadIdx.x < ROWS) {
    int index = rows.index[threadIdx.x];
    float2 row = index < 0 ? make_float2(0, 0) : statistics[index];
    known[threadIdx.x] = make_float2(row.x * LOG2_E, row.y);
  }
#pragma unroll
  for (int n = 0; n < STAGES - 1; n++) {
    copyKeys(stages + n * STAGE, from, walk, walk.first + n * N);
    cpAsyncCommit();
  }

  int warp = threadIdx.x / 32;
  int warpRow = warp % ROW_WARPS * 16 * ROW_TILES;
  int warpKey = warp / ROW_WARPS * SPAN;
  sights[warp].set(rows, warpRow);
  Lane<KEY> queryLane = firstOperand<KEY>(tileQ + warpRow * KEY);
  Lane<VALUES> gradientLane = firstOperand<VALUES>(tileO + warpRow * VALUES);
  // All threads have loaded the rows.
  cpAsyncWait<0>();
  __syncthreads();

  float scale = u.scale * LOG2_E;
  float sums[ROW_TILES][KEY / 8][4];
  clear(sums);
  int stage = 0;
  for (int base = walk.first; base < walk.end; base += N) {
    awaitCopies<STAGES - 2>();
    int ahead = stage == 0 ? STAGES - 1 : stage - 1;
    copyKeys(stages + ahead * STAGE, from, walk, base + (STAGES - 1) * N);
    cpAsyncCommit();
    const T *tileK = stages + stage * STAGE + warpKey * KEY;
    const T *tileV =
        LATENT ? tileK : stages + stage * STAGE + N * KEY + warpKey * VALUES;
    stage = stage == STAGES - 1 ? 0 : stage + 1;
    bool none, whole;
    sights[warp].look<SPAN>(walk, base + warpKey, none, whole);
    if (none) continue;

    float p[ROW_TILES][SPAN / 8][4];
    clear(p);
    auto query = [&](unsigned (&a)[4], int m, int k) {
      queryLane.load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, KEY, 4>(p, query, secondOperand<KEY>(tileK));
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float log = known[warpRow + 16 * m + 8 * half + laneRow()].x;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; e++) {
            p[m][n][e] = exp2Fast(p[m][n][e] * scale - log);
          }
        }
      }
      if (!whole) {
        hideUnseen<SPAN>(p[m], 0, rows, warpRow + 16 * m, walk, base + warpKey);
      }
    }
    float dP[ROW_TILES][SPAN / 8][4];
    clear(dP);
    auto gradient = [&](unsigned (&a)[4], int m, int k) {
      gradientLane.load<false>(a, 16 * m, k);
    };
    multiplyRows<SPAN, VALUES, 4>(
        dP, gradient, secondOperand<LATENT ? KEY : VALUES>(tileV));
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float delta = known[warpRow + 16 * m + 8 * half + laneRow()].y;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; e++) {
            p[m][n][e] *= dP[m][n][e] - delta;
          }
        }
      }
    }
    multiplyColumns<KEY, SPAN>(sums, p, secondTransposed<KEY>(tileK));
  }
  cpAsyncWait<0>();

  // By value: a reference to it would take registers.
  auto emit = [&, d](int row, int c, float x, float y) {
    i64 index = rows.index[row];
    if (index >= 0) storeGradient(d, index, c, x * u.scale, y * u.scale);
  };
  emitRows<KEY, WIDTH + ROPE>(sums, memory, emit);
}
