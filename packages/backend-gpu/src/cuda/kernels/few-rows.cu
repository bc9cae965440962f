#include "pieces.cuh"

#define THREADS 256
/** Bytes of a row that wait in the L2 cache, which has to hold all warps'. */
#define MOST_AHEAD 8192

/**
 * a [ROWS, groups, inner], w [columns, inner], y and plus [ROWS, columns]: each
 * `share` columns are of a group.
 */
struct Part {
  const T *a, *w, *plus;
  T *y;
  int columns, share, pitch;
  // Its first block of threads.
  int start;
};
struct Parts {
  Part list[MOST];
};

/**
 * y[m, n] = sum over k of a[m, g, k] w[n, k], and plus[m, n] where there is one
 *
 * A warp has COLUMNS rows of w. Its lanes take pieces side by side, HELD of each
 * row at a time, and load all of them before they compute: such products wait for
 * memory and for little else. How a sum is added follows from `inner` alone.
 * Its rows of w are on their way to the L2 cache while the kernel before runs.
 */
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    fewRows(Parts parts, int inner, int count) {
  Part part = parts.list[partOf(parts, count)];
  int lane = threadIdx.x % 32;
  int warp = ((int)blockIdx.x - part.start) * (THREADS / 32) + threadIdx.x / 32;
  int first = warp * COLUMNS;
  const T *w[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    // Behind the last column is that one again.
    w[c] = part.w + (i64)min(first + c, part.columns - 1) * inner;
    if (lane == c) prefetch(w[c], min(inner * (int)sizeof(T), MOST_AHEAD));
  }
  awaitEarlier();
  letNextStart();
  if (first >= part.columns) return;
  // A lane writes one element.
  int row = lane / COLUMNS, column = first + lane % COLUMNS;
  bool isOwn = row < ROWS && column < part.columns;
  i64 place = (i64)row * part.columns + column;
  T other = isOwn && part.plus ? part.plus[place] : T();
  const T *a = part.a + (i64)(first / part.share) * inner;
  float sums[ROWS][COLUMNS] = {};
  for (int from = lane * PIECE; from < inner; from += HELD * 32 * PIECE) {
    int4 far[HELD][COLUMNS], near[HELD][ROWS];
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      int k = from + n * 32 * PIECE;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) far[n][c] = loadOnce(w[c] + k, k < inner);
    }
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      int k = from + n * 32 * PIECE;
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
        const int4 *piece = (const int4 *)(a + m * part.pitch + k);
        near[n][m] = k < inner ? *piece : make_int4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      float weights[COLUMNS][PIECE];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        loadWhole<T>(weights[c], (const T *)&far[n][c]);
      }
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
        float x[PIECE];
        loadWhole<T>(x, (const T *)&near[n][m]);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          // A sum of its own: no piece waits for the one before it.
          float sum = x[0] * weights[c][0];
#pragma unroll
          for (int e = 1; e < PIECE; e++) sum = fmaf(x[e], weights[c][e], sum);
          sums[m][c] += sum;
        }
      }
    }
  }
  float own = 0;
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float sum = warpSum(sums[m][c]);
      if (lane == m * COLUMNS + c) own = sum;
    }
  }
  if (isOwn) part.y[place] = narrow<T>(own + widen(other));
}
