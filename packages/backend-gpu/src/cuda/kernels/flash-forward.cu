// o = softmax(scores) v for 16-bit types. Scores are kept in units of a
// factor 2: 2^(scale log2(e) q . k).
#include "flash-softmax.cuh"

/** Queries stay in registers where one row of tiles leaves the room. */
constexpr bool KEEPS_QUERIES = ROW_TILES == 1 && KEY <= 128 && VALUES <= 128;
constexpr int PAIRS = KEEPS_QUERIES ? KEY / 16 : 4;

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
  Softmax softmax;
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

    softmax.weigh(scores, scale);
    multiplyColumns<VALUES, SPAN>(
        softmax.sums, scores, secondTransposed<LATENT ? KEY : VALUES>(tileV));
  }
  cpAsyncWait<0>();
  __syncthreads();

  softmax.close(rows, split, lse);
  emitRows<VALUES, VALUE>(softmax.sums, memory, [&](int row, int c, float x, float y) {
    int index = rows.index[row];
    if (index >= 0) storePair(o + split.rowOf(index) * VALUE + c, x, y);
  });
}
