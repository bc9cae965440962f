// Types, conversions and reductions that every kernel shares. No header of the
// toolkit is included: the run-time compiler alone must be enough.
#pragma once
#include "ptx.cuh"

typedef long long i64;
typedef float f32;
// Elements that are moved, not computed with.
typedef short bits16;
typedef int bits32;
typedef int4 bits128;
struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

#define INFINITE __int_as_float(0x7f800000)

__device__ inline float widen(f32 x) { return x; }
__device__ inline float widen(f16 x) { return floatOfHalf(x.bits); }
__device__ inline float widen(bf16 x) {
  return __uint_as_float((unsigned)x.bits << 16);
}

/** Rounds to nearest even. */
template <typename T> __device__ T narrow(float x);
template <> __device__ inline f32 narrow<f32>(float x) { return x; }
template <> __device__ inline f16 narrow<f16>(float x) {
  return {halfOfFloat(x)};
}
template <> __device__ inline bf16 narrow<bf16>(float x) {
  return {bfloatOfFloat(x)};
}

/** Two elements in 32 bits, the first one low. */
__device__ inline unsigned pair(float low, float high, bf16) {
  return bfloatsOfFloats(low, high);
}
__device__ inline unsigned pair(float low, float high, f16) {
  return halvesOfFloats(low, high);
}

__device__ inline void unpack(float &low, float &high, unsigned two, bf16) {
  low = __uint_as_float(two << 16);
  high = __uint_as_float(two & 0xffff0000);
}
__device__ inline void unpack(float &low, float &high, unsigned two, f16) {
  low = floatOfHalf(two & 0xffff);
  high = floatOfHalf(two >> 16);
}

/** The thread's number in a grid of one axis. */
__device__ inline i64 globalIndex() {
  return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

template <typename V> __device__ inline V warpSum(V x) {
  for (int reach = 16; reach > 0; reach /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, reach);
  }
  return x;
}

__device__ inline float warpMax(float x) {
  for (int reach = 16; reach > 0; reach /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, reach));
  }
  return x;
}

/** The sum of all threads' values, for all of them, always in one order. */
template <typename V> __device__ inline V blockSum(V x) {
  __shared__ V parts[32];
  x = warpSum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  V sum = 0;
  for (int warp = 0; warp < (blockDim.x + 31) / 32; warp++) sum += parts[warp];
  return sum;
}

/** The largest of all threads' values, for all of them. */
__device__ inline float blockMax(float x) {
  __shared__ float parts[32];
  x = warpMax(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float most = parts[0];
  for (int warp = 1; warp < (blockDim.x + 31) / 32; warp++) {
    most = fmaxf(most, parts[warp]);
  }
  return most;
}

/** exp of what is not positive: neither form overflows. */
__device__ inline float sigmoid(float x) {
  float e = expf(-fabsf(x));
  return (x >= 0 ? 1 : e) / (1 + e);
}

/** A row of the device's table of sequences, as `Sequence` in core. */
struct Sequence {
  int queryStart, queryCount, keyStart, keyCount, blockStart, leaderStart;
};

/** NC of maths.md §3: the whole blocks of so many tokens. */
__device__ inline int blocksOf(int tokens, int length, int stride) {
  return tokens < length ? 0 : (tokens - length) / stride + 1;
}
