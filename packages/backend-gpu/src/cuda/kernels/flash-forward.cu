// o = softmax(scores) v for 16-bit types. Scores are kept in units of a
// factor 2: 2^(scale log2(e) q . k).
#include "flash.cuh"

/**
 * A row's reference lags behind its maximum by a factor 2^LAG at most: its
 * weights stay far from the end of f16, and its sums are seldom corrected.
 */
#define LAG 8

/** Queries stay in registers where one row of tiles leaves the room. */
constexpr bool KEEPS_QUERIES = ROW_TILES == 1 && KEY <= 128 && VALUES <= 128;
constexpr int PAIRS = KEEPS_QUERIES ? KEY / 16 : 4;

/**
 * factor = what a row's sums are multiplied by: 1 / its total, where warps
 * shared out its keys relative to the largest of their references. Also its LSE.
 */
__device__ inline void closeRows(float (&factor)[ROW_TILES][2],
                                 const float (&most)[ROW_TILES][2],
                                 const float (&total)[ROW_TILES][2],
                                 const RowTable<ROWS> &rows,
                                 const Split &split, float *lse) {
  __shared__ float2 known[KEY_WARPS][ROWS];
  int warp = threadIdx.x / 32;
  int part = warp / ROW_WARPS;
  int firstRow = warp % ROW_WARPS * 16 * ROW_TILES + laneRow();
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = firstRow + 16 * m + 8 * half;
      float2 mine = make_float2(most[m][half], total[m][half]);
      if (laneColumn() == 0) known[part][row] = mine;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = firstRow + 16 * m + 8 * half;
      float top = -INFINITE;
      for (int w = 0; w < KEY_WARPS; w++) top = fmaxf(top, known[w][row].x);
      float reference = top == -INFINITE ? 0 : top;
      float all = 0;
      for (int w = 0; w < KEY_WARPS; w++) {
        all += known[w][row].y * exp2Fast(known[w][row].x - reference);
      }
      factor[m][half] = all == 0 ? 0 : exp2Fast(most[m][half] - reference) / all;
      int index = rows.index[row];
      if (part > 0 || laneColumn() > 0 || index < 0) continue;
      lse[split.rowOf(index)] = all == 0 ? -INFINITE : top / LOG2_E + logf(all);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    flashForward(Call u, Result *o, float *lse, int splits) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  T *stages = (T *)memory;
  T *tileQ = stages + STAGES * STAGE;
  int *list = (int *)(tileQ + ROWS * KEY);

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * u.unitHeads;
  Source from = sourceOf(u, s, head0 / (u.heads / u.keyHeads));
  // The last rows walk furthest, so they start first.
  // In shared memory, as it is wanted again only at the end.
  __shared__ Split split;
  split = Split::of(splits);
  int tile = (gridDim.x - 1 - blockIdx.x) / split.count;
  Walk walk;
  if (!openRows(u, s, tile, head0, rows, walk)) return;
  if (VIEW == SELECTED) keepList(u, walk, list);
  if (!split.take(walk, rows, lse)) return;
  __syncthreads();
  copyQueries<KEY, 0, WIDTH>(tileQ, u.q, rows);
#if ROPE > 0
  copyQueries<KEY, WIDTH, ROPE>(tileQ, u.qRope, rows);
#endif
  cpAsyncCommit();
  clearColumns<KEY, ROWS, WIDTH + ROPE>(tileQ);
  clearStages(stages);
#pragma unroll
  for (int n = 0; n < STAGES - 1; n++) {
    copyKeys(stages + n * STAGE, from, walk, walk.first + n * N);
    cpAsyncCommit();
  }

  int warp = threadIdx.x / 32;
  int warpRow = warp % ROW_WARPS * 16 * ROW_TILES;
  int warpKey = warp / ROW_WARPS * SPAN;
  // In shared memory: a warp of two row tiles has no register to spare.
  __shared__ Sight sights[WARPS];
  sights[warp].set(rows, warpRow);
  Lane<KEY> queryLane = firstOperand<KEY>(tileQ + warpRow * KEY);
  unsigned queries[KEEPS_QUERIES ? KEY / 16 : 1][4];
  // All threads have loaded the queries.
  cpAsyncWait<STAGES - 1>();
  __syncthreads();
  if (KEEPS_QUERIES) {
#pragma unroll
    for (int k = 0; k < KEY / 16; k++) {
      queryLane.load<false>(queries[KEEPS_QUERIES ? k : 0], 0, k);
    }
  }

  float scale = u.scale * LOG2_E;
  float most[ROW_TILES][2];
  float total[ROW_TILES][2];
  float sums[ROW_TILES][VALUES / 8][4];
  clear(sums);
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      most[m][half] = -INFINITE;
      total[m][half] = 0;
    }
  }

  int stage = 0;
  for (int base = walk.first; base < walk.end; base += N) {
    awaitCopies<STAGES - 2>();
    // Into the place of the tile before, with which all are done.
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

    float scores[ROW_TILES][SPAN / 8][4];
    clear(scores);
    auto first = [&](unsigned (&a)[4], int m, int k) {
      if (KEEPS_QUERIES) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[e] = queries[KEEPS_QUERIES ? k : 0][e];
      } else {
        queryLane.load<false>(a, 16 * m, k);
      }
    };
    multiplyRows<SPAN, KEY, PAIRS>(scores, first, secondOperand<KEY>(tileK));
    if (!whole) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
        hideUnseen<SPAN>(scores[m], -INFINITE, rows, warpRow + 16 * m, walk,
                         base + warpKey);
      }
    }

    float fade[ROW_TILES][2];
    bool fades = false;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = -INFINITE;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
          top = fmaxf(top, fmaxf(scores[m][n][2 * half],
                                 scores[m][n][2 * half + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2)) * scale;
        bool rises = top > most[m][half] + LAG;
        fades = fades || rises;
        fade[m][half] = rises ? exp2Fast(most[m][half] - top) : 1;
        if (rises) most[m][half] = top;
        // Where nothing was seen yet every weight is 2^-inf.
        float reference = most[m][half] == -INFINITE ? 0 : most[m][half];
        float sum = 0;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &p = scores[m][n][2 * half + e];
            p = exp2Fast(p * scale - reference);
            sum += p;
          }
        }
        total[m][half] = total[m][half] * fade[m][half] + sum;
      }
    }
    if (__any_sync(0xffffffff, fades)) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
        for (int n = 0; n < VALUES / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) sums[m][n][e] *= fade[m][e / 2];
        }
      }
    }

    multiplyColumns<VALUES, SPAN>(
        sums, scores, secondTransposed<LATENT ? KEY : VALUES>(tileV));
  }
  cpAsyncWait<0>();
  __syncthreads();

#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float &all = total[m][half];
      all += __shfl_xor_sync(0xffffffff, all, 1);
      all += __shfl_xor_sync(0xffffffff, all, 2);
    }
  }
  float factor[ROW_TILES][2];
  closeRows(factor, most, total, rows, split, lse);
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
    for (int n = 0; n < VALUES / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) sums[m][n][e] *= factor[m][e / 2];
    }
  }
  emitRows<VALUES, VALUE>(sums, memory, [&](int row, int c, float x, float y) {
    int index = rows.index[row];
    if (index >= 0) storePair(o + split.rowOf(index) * VALUE + c, x, y);
  });
}
