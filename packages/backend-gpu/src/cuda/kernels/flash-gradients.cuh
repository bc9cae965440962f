// Gradients of 64 rows and 64 keys of selected attention, for 16-bit types: what
// one side gets stays in registers, what the other gets leaves as parts of 16
// rows or keys, which are added later in the order of the leaders.
//
// Four warps: two share out the rows, and two the keys; of columns each has
// every other 16, so that the halves differ in one bit of a swizzled address.
#pragma once
#define ROW_SHARES 2
#include "flash.cuh"

static_assert(ROWS == 64 && N == 64 && WARPS == 4, "32 by 32 scores a warp");
static_assert(KEY % 32 == 0 && VALUE % 32 == 0 && BLOCK % 16 == 0, "halves");

/** Rows of a list: its leader's queries by the heads that share it. */
constexpr int LIST_ROWS = SHARING * UNIT;

/** sums += a b over DEPTH rows of b, of which the lane has every other 16 columns. */
template <int COLUMNS, int DEPTH, int W, typename First>
__device__ inline void multiplyHalf(float (&sums)[ROW_TILES][COLUMNS / 8][4],
                                    First first, const Lane<W> &second) {
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    unsigned a[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) first(a[m], m, k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      unsigned b[4];
      second.template load<true>(b, 16 * k, 2 * n);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++) multiply(sums[m], n, a[m], b);
    }
  }
}

/** Rows as the second operand, transposed: the pairs of 8 columns of a half. */
template <int W> __device__ inline Lane<W> halfOf(const T *tile, int half) {
  Lane<W> lane = secondTransposed<W>(tile);
  lane.turn ^= 2 * half;
  return lane;
}

/** A warp's weights to their place in the tile of ROWS by N. */
__device__ inline void keepWeights(T *tile, const float (&x)[SPAN / 8][4],
                                   int row, int key) {
#pragma unroll
  for (int n = 0; n < SPAN / 8; n++) {
    int piece = key / 8 + n;
    storePair(tile + Tile<N>::at(row, piece) + laneColumn(), x[n][0], x[n][1]);
    storePair(tile + Tile<N>::at(row + 8, piece) + laneColumn(), x[n][2],
              x[n][3]);
  }
}

/**
 * A warp's columns of a part, as they lie in its lanes. Parts pass through the
 * L2 cache: what is read again and again should stay there.
 */
template <int COLUMNS>
__device__ inline void writePart(uint4 *to, const float (&x)[COLUMNS / 8][4]) {
#pragma unroll
  for (int n = 0; n < COLUMNS / 16; n++) {
    const float(&low)[4] = x[2 * n];
    const float(&high)[4] = x[2 * n + 1];
    __stcs(to + 32 * n,
           make_uint4(pair(low[0], low[1], T()), pair(low[2], low[3], T()),
                      pair(high[0], high[1], T()), pair(high[2], high[3], T())));
  }
}

/** Parts that a thread waits for at a time. */
constexpr int PARTS_AT_ONCE = 8;

/** sums += parts 0, 1, .. in this order; `load(i, part)` leaves 0 for none. */
template <typename Load>
__device__ inline void addParts(float (&sums)[8], Load load) {
  uint4 parts[PARTS_AT_ONCE];
#pragma unroll
  for (int i = 0; i < PARTS_AT_ONCE; i++) {
    parts[i] = make_uint4(0, 0, 0, 0);
    load(i, parts[i]);
  }
#pragma unroll
  for (int i = 0; i < PARTS_AT_ONCE; i++) {
    const T *x = (const T *)&parts[i];
#pragma unroll
    for (int e = 0; e < 8; e++) sums[e] += widen(x[e]);
  }
}
