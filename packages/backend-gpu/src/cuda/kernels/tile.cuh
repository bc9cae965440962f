// Products of tiles in shared memory, a warp 16 rows at a time. In 16-bit types
// they run on the tensor cores (mma.sync, from sm_80 on), in f32 on the FMA
// units; the accumulators lie in registers the same way for both.
//
// Of a tile of 16 rows by 8 columns, lane 4 g + t of a warp holds the elements
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1): `sums[tile][0 .. 3]`.
#pragma once
#include "common.cuh"

/** Elements that a row is longer than its columns: rows fall into other banks. */
#define PAD (16 / (int)sizeof(T))

__device__ inline int laneRow() { return threadIdx.x % 32 / 4; }
__device__ inline int laneColumn() { return threadIdx.x % 4 * 2; }

__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                           unsigned b1, bf16) {
  mmaBfloat(d, a, b0, b1);
}
__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                           unsigned b1, f16) {
  mmaHalf(d, a, b0, b1);
}

/**
 * Types of 16 bits only. That a template for f32 is the closer one is not told
 * by every compiler, where sizes of arrays are computed.
 */
template <typename H> struct Short;
template <> struct Short<f16> {
  typedef f16 Type;
};
template <> struct Short<bf16> {
  typedef bf16 Type;
};

/**
 * sums += a b^T: a `[16, depth]`, b `[COLUMNS, depth]`. `depth` and COLUMNS are
 * multiples of 16, pitches of 16 bytes.
 */
template <int COLUMNS, typename H, typename = typename Short<H>::Type>
__device__ inline void productByRows(float (&sums)[COLUMNS / 8][4], const H *a,
                                     int aPitch, const H *b, int bPitch,
                                     int depth) {
  int lane = threadIdx.x % 32;
  const H *aRow = a + lane % 16 * aPitch + lane / 16 * 8;
  const H *bRow = b + (lane / 16 * 8 + lane % 8) * bPitch + lane / 8 % 2 * 8;
#pragma unroll 2
  for (int k = 0; k < depth; k += 16) {
    unsigned x[4];
    loadMatrices<false>(x, aRow + k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      unsigned y[4];
      loadMatrices<false>(y, bRow + 16 * n * bPitch + k);
      mma(sums[2 * n], x, y[0], y[1], H());
      mma(sums[2 * n + 1], x, y[2], y[3], H());
    }
  }
}

template <int COLUMNS>
__device__ inline void productByRows(float (&sums)[COLUMNS / 8][4],
                                     const f32 *a, int aPitch, const f32 *b,
                                     int bPitch, int depth) {
  const f32 *upper = a + laneRow() * aPitch;
  const f32 *lower = upper + 8 * aPitch;
  for (int k = 0; k < depth; k += 4) {
    float4 u = *(const float4 *)(upper + k);
    float4 l = *(const float4 *)(lower + k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float4 y = *(const float4 *)(b + (8 * n + laneColumn() + e) * bPitch + k);
        sums[n][e] += u.x * y.x + u.y * y.y + u.z * y.z + u.w * y.w;
        sums[n][2 + e] += l.x * y.x + l.y * y.y + l.z * y.z + l.w * y.w;
      }
    }
  }
}

/** sums += a b: a `[16, depth]`, b `[depth, COLUMNS]`. */
template <int COLUMNS, typename H, typename = typename Short<H>::Type>
__device__ inline void productByColumns(float (&sums)[COLUMNS / 8][4],
                                        const H *a, int aPitch, const H *b,
                                        int bPitch, int depth) {
  int lane = threadIdx.x % 32;
  const H *aRow = a + lane % 16 * aPitch + lane / 16 * 8;
  const H *bRow = b + (lane / 8 % 2 * 8 + lane % 8) * bPitch + lane / 16 * 8;
  for (int k = 0; k < depth; k += 16) {
    unsigned x[4];
    loadMatrices<false>(x, aRow + k);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      unsigned y[4];
      loadMatrices<true>(y, bRow + k * bPitch + 16 * n);
      mma(sums[2 * n], x, y[0], y[1], H());
      mma(sums[2 * n + 1], x, y[2], y[3], H());
    }
  }
}

template <int COLUMNS>
__device__ inline void productByColumns(float (&sums)[COLUMNS / 8][4],
                                        const f32 *a, int aPitch, const f32 *b,
                                        int bPitch, int depth) {
  const f32 *upper = a + laneRow() * aPitch;
  const f32 *lower = upper + 8 * aPitch;
  for (int k = 0; k < depth; k++) {
    float u = upper[k];
    float l = lower[k];
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
      float2 y = *(const float2 *)(b + k * bPitch + 8 * n + laneColumn());
      sums[n][0] += u * y.x;
      sums[n][1] += u * y.y;
      sums[n][2] += l * y.x;
      sums[n][3] += l * y.y;
    }
  }
}

template <int COLUMNS>
__device__ inline void clear(float (&sums)[COLUMNS][4]) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) sums[n][e] = 0;
  }
}

/** Columns of rows in device memory: element (row, c) is base[row stride + c]. */
struct Columns {
  const T *base;
  i64 stride;
  int width;
};

/**
 * tile[i, c] = the row `rows[i]` of `left`, then of `right`, zeros behind them
 * up to `columns`, and in rows that are -1. `aligned`: every row's width and
 * start is a multiple of 16 bytes.
 */
__device__ inline void loadTile(T *tile, int pitch, int count, int columns,
                                const int *rows, Columns left, Columns right,
                                bool aligned) {
  int step = aligned ? PAD : 1;
  int perRow = columns / step;
  for (int x = threadIdx.x; x < count * perRow; x += blockDim.x) {
    int i = x / perRow;
    int c = x % perRow * step;
    int row = rows[i];
    const T *from = 0;
    if (row >= 0) {
      if (c < left.width) {
        from = left.base + row * left.stride + c;
      } else if (c < left.width + right.width) {
        from = right.base + row * right.stride + c - left.width;
      }
    }
    T *to = tile + i * pitch + c;
    if (aligned) {
      *(int4 *)to = from ? *(const int4 *)from : make_int4(0, 0, 0, 0);
    } else {
      *to = from ? *from : narrow<T>(0);
    }
  }
}
