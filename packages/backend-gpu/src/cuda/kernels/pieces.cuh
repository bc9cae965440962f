// Elements eight at a time: 16 bytes of a 16-bit type, which one instruction
// moves. Tensors begin on multiples of 256 bytes.
#pragma once
#include "common.cuh"

#define PIECE 8

/** Lanes side by side that share a row, and how many pieces of it each has. */
#ifndef LANES
#define LANES 32
#endif

/** A whole piece, on a multiple of 16 bytes. */
template <typename H>
__device__ inline void loadWhole(float (&x)[PIECE], const H *from) {
  int4 bits = *(const int4 *)from;
  unpack(x[0], x[1], bits.x, H());
  unpack(x[2], x[3], bits.y, H());
  unpack(x[4], x[5], bits.z, H());
  unpack(x[6], x[7], bits.w, H());
}
template <typename H>
__device__ inline void storeWhole(H *to, const float (&x)[PIECE]) {
  int4 bits;
  bits.x = pair(x[0], x[1], H());
  bits.y = pair(x[2], x[3], H());
  bits.z = pair(x[4], x[5], H());
  bits.w = pair(x[6], x[7], H());
  *(int4 *)to = bits;
}
template <>
__device__ inline void loadWhole<f32>(float (&x)[PIECE], const f32 *from) {
#pragma unroll
  for (int n = 0; n < PIECE; n += 4) {
    float4 four = *(const float4 *)(from + n);
    x[n] = four.x;
    x[n + 1] = four.y;
    x[n + 2] = four.z;
    x[n + 3] = four.w;
  }
}
template <>
__device__ inline void storeWhole<f32>(f32 *to, const float (&x)[PIECE]) {
#pragma unroll
  for (int n = 0; n < PIECE; n += 4) {
    *(float4 *)(to + n) = make_float4(x[n], x[n + 1], x[n + 2], x[n + 3]);
  }
}

/** A piece as it is once it has been stored. */
template <typename H>
__device__ inline void roundPiece(float (&x)[PIECE], H) {
#pragma unroll
  for (int n = 0; n < PIECE; n += 2) {
    unpack(x[n], x[n + 1], pair(x[n], x[n + 1], H()), H());
  }
}
__device__ inline void roundPiece(float (&)[PIECE], f32) {}

__device__ inline void clear(float (&x)[PIECE]) {
#pragma unroll
  for (int n = 0; n < PIECE; n++) x[n] = 0;
}

/** Of a piece: all of it is there; it may end early, or lie anywhere. */
struct Whole {};
struct Ragged {};

/**
 * body(Whole()) or body(Ragged()): one choice for all pieces that a thread
 * loads, so that its loads come one behind another and wait together.
 */
template <typename Body> __device__ inline void choose(bool whole, Body body) {
  if (whole) {
    body(Whole());
  } else {
    body(Ragged());
  }
}

/** Elements `at ..` of an array or a row of `count`; 0 past its end. */
template <typename X>
__device__ inline void loadPiece(float (&x)[PIECE], const X *from, i64 at, i64,
                                 Whole) {
  loadWhole<X>(x, from + at);
}
template <typename X>
__device__ inline void loadPiece(float (&x)[PIECE], const X *from, i64 at,
                                 i64 count, Ragged) {
#pragma unroll
  for (int n = 0; n < PIECE; n++) {
    x[n] = at + n < count ? widen(from[at + n]) : 0;
  }
}
template <typename X>
__device__ inline void storePiece(X *to, i64 at, i64, const float (&x)[PIECE],
                                  Whole) {
  storeWhole<X>(to + at, x);
}
template <typename X>
__device__ inline void storePiece(X *to, i64 at, i64 count,
                                  const float (&x)[PIECE], Ragged) {
#pragma unroll
  for (int n = 0; n < PIECE; n++) {
    if (at + n < count) to[at + n] = narrow<X>(x[n]);
  }
}

/** The sum over the lanes of a row, for all of them. */
__device__ inline float rowSum(float x) {
#pragma unroll
  for (int reach = LANES / 2; reach > 0; reach /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, reach);
  }
  return x;
}

/** Of the first `count` parts, by their first blocks: the one of this block. */
template <typename Parts>
__device__ inline int partOf(const Parts &parts, int count) {
  int low = 0, high = count - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (parts.list[middle].start <= (int)blockIdx.x) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The thread's number among those of its part. */
template <typename Part> __device__ inline i64 indexIn(const Part &part) {
  return ((i64)blockIdx.x - part.start) * blockDim.x + threadIdx.x;
}
