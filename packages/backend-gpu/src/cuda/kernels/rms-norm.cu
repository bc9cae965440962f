#include "pieces.cuh"

#define THREADS 256

/** Whether something is added to a gradient of x. */
#ifndef PLUS
#define PLUS 0
#endif

/** r = 1 / sqrt(mean(x^2) + eps) of a block's row */
__device__ float inverseRoot(const T *x, int width, float eps) {
  float squares = 0;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float value = widen(x[c]);
    squares += value * value;
  }
  return 1 / sqrtf(blockSum(squares) / width + eps);
}

/** y = w x r; a block a row, of any width */
extern "C" __global__ void rmsNorm(const T *x, const T *weight, T *y, int width,
                                   int norms, float eps) {
  letNextStart();
  i64 row = blockIdx.x;
  x += row * width;
  y += row * width;
  weight += (row % norms) * width;
  float r = inverseRoot(x, width, eps);
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    y[c] = narrow<T>(widen(weight[c]) * widen(x[c]) * r);
  }
}

/**
 * dx = r w dy - x r^3 mean(w dy x) + plus
 * terms = dy x r, whose sum over rows is dw
 */
extern "C" __global__ void rmsNormBackward(const T *x, const T *weight,
                                           const T *dy, const T *plus, T *dx,
                                           f32 *terms, int width, int norms,
                                           float eps) {
  i64 row = blockIdx.x;
  x += row * width;
  dy += row * width;
  if (PLUS) plus += row * width;
  dx += row * width;
  terms += row * width;
  weight += (row % norms) * width;
  float r = inverseRoot(x, width, eps);
  float sum = 0;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float d = widen(dy[c]) * widen(x[c]);
    terms[c] = d * r;
    sum += d * widen(weight[c]);
  }
  float pull = r * r * r * blockSum(sum) / width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float d = r * widen(weight[c]) * widen(dy[c]);
    float other = PLUS ? widen(plus[c]) : 0;
    dx[c] = narrow<T>(d - pull * widen(x[c]) + other);
  }
}

/**
 * Whether rows are few: then weights are on their way with them, at the price of
 * registers.
 */
#ifndef FEW
#define FEW 0
#endif

/** Where rows are whole pieces, LANES lanes keep one in registers. */
#ifndef HELD
#define HELD 1
#endif

/** A lane's pieces of a row, as they are stored: floats take twice the room. */
struct Row {
  int4 bits[HELD][PIECE * sizeof(T) / 16];

  /** 0 behind the row's end, and where it is none. */
  __device__ Row(const T *from, bool isRow, int width) {
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      int c = (n * LANES + threadIdx.x % LANES) * PIECE;
      bool isHere = isRow && c < width;
      const int4 *piece = (const int4 *)(from + c);
#pragma unroll
      for (int part = 0; part < PIECE * sizeof(T) / 16; part++) {
        bits[n][part] = isHere ? piece[part] : make_int4(0, 0, 0, 0);
      }
    }
  }
  __device__ void take(float (&x)[PIECE], int n) const {
    loadWhole<T>(x, (const T *)bits[n]);
  }
};

/** r = 1 / sqrt(mean(x^2) + eps) */
__device__ inline float inverseRoot(const Row &row, int width, float eps) {
  float squares = 0;
#pragma unroll
  for (int n = 0; n < HELD; n++) {
    float x[PIECE];
    row.take(x, n);
#pragma unroll
    for (int e = 0; e < PIECE; e++) squares += x[e] * x[e];
  }
  return 1 / sqrtf(rowSum(squares) / width + eps);
}

/** y = w x r; LANES lanes a row */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    rmsNormHeld(const T *x, const T *weight, T *y, i64 rows, int width, int norms,
            float eps) {
  letNextStart();
  i64 row = globalIndex() / LANES;
  bool isRow = row < rows;
  Row held(x + row * width, isRow, width);
  weight += (unsigned)row % norms * width;
  Row factors(weight, FEW && isRow, width);
  float r = inverseRoot(held, width, eps);
#pragma unroll
  for (int n = 0; n < HELD; n++) {
    int c = (n * LANES + threadIdx.x % LANES) * PIECE;
    if (!isRow || c >= width) break;
    float factor[PIECE], value[PIECE];
    if (FEW) factors.take(factor, n);
    else loadWhole<T>(factor, weight + c);
    held.take(value, n);
#pragma unroll
    for (int e = 0; e < PIECE; e++) value[e] *= factor[e] * r;
    storeWhole<T>(y + row * width + c, value);
  }
}

/** Registers of a lane's rows and sums, and so blocks of a multiprocessor. */
#define KEPT (HELD * (PIECE + (2 + PLUS) * PIECE * sizeof(T) / 4))
#define BLOCKS (KEPT < 128 ? 2 : 1)

/**
 * dx = r w dy - x r^3 mean(w dy x) + plus
 * terms = dy x r, whose sum over rows is dw
 *
 * The lanes of a row go on to every `parts`th, of which each is of the same
 * norm, and sum its terms in registers; those of all parts are `[parts, width]`.
 */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    rmsNormBackwardHeld(const T *x, const T *weight, const T *dy, const T *plus,
                        T *dx, f32 *terms, i64 rows, int width, int norms,
                        float eps, int parts) {
  int part = globalIndex() / LANES;
  weight += (i64)(part % norms) * width;
  float sums[HELD][PIECE];
#pragma unroll
  for (int n = 0; n < HELD; n++) clear(sums[n]);
  // As often for all lanes of a warp.
  for (i64 done = 0; done < rows; done += parts) {
    i64 row = done + part;
    bool isRow = row < rows;
    Row held(x + row * width, isRow, width);
    Row slopes(dy + row * width, isRow, width);
    // Loads nothing where nothing is added.
    Row others(plus + row * width, PLUS && isRow, width);
    float r = inverseRoot(held, width, eps);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      int c = (n * LANES + threadIdx.x % LANES) * PIECE;
      float value[PIECE], d[PIECE], factor[PIECE];
      held.take(value, n);
      slopes.take(d, n);
      clear(factor);
      if (c < width) loadWhole<T>(factor, weight + c);
#pragma unroll
      for (int e = 0; e < PIECE; e++) {
        float term = d[e] * value[e];
        sums[n][e] += term * r;
        sum += term * factor[e];
      }
    }
    float pull = r * r * rowSum(sum) / width;
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      int c = (n * LANES + threadIdx.x % LANES) * PIECE;
      if (!isRow || c >= width) break;
      float value[PIECE], d[PIECE], factor[PIECE], other[PIECE];
      held.take(value, n);
      slopes.take(d, n);
      others.take(other, n);
      loadWhole<T>(factor, weight + c);
#pragma unroll
      for (int e = 0; e < PIECE; e++) {
        d[e] = r * (factor[e] * d[e] - pull * value[e]) + other[e];
      }
      storeWhole<T>(dx + row * width + c, d);
    }
  }
#pragma unroll
  for (int n = 0; n < HELD; n++) {
    int c = (n * LANES + threadIdx.x % LANES) * PIECE;
    if (c < width) storeWhole<f32>(terms + (i64)part * width + c, sums[n]);
  }
}
