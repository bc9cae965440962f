// CUDA C++ for g++: included before every kernel, and before its definitions,
// whose names are as short as T. `nvrtc.cpp` rewrites what no header can say.
#pragma once
#include "simt.h"
#include <math.h>

extern "C" int printf(const char *, ...);
extern "C" void *memcpy(void *, const void *, unsigned long);
extern "C" void *memset(void *, int, unsigned long);

#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __CUDA_ARCH__ 900
#define __CUDACC_RTC__ 1

#define threadIdx (asaThread->index)
#define blockIdx (asaLaunch.block)
#define blockDim (asaLaunch.threads)
#define gridDim (asaLaunch.blocks)
#define warpSize 32

// Vectors.
#define ASA_VECTORS(base, type)                                                \
  struct alignas(2 * sizeof(type)) base##2 { type x, y; };                     \
  struct base##3 { type x, y, z; };                                            \
  struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) base##4 {      \
    type x, y, z, w;                                                           \
  };                                                                           \
  inline base##2 make_##base##2(type x, type y) { return {x, y}; }             \
  inline base##3 make_##base##3(type x, type y, type z) { return {x, y, z}; }  \
  inline base##4 make_##base##4(type x, type y, type z, type w) {              \
    return {x, y, z, w};                                                       \
  }
ASA_VECTORS(char, signed char)
ASA_VECTORS(uchar, unsigned char)
ASA_VECTORS(short, short)
ASA_VECTORS(ushort, unsigned short)
ASA_VECTORS(int, int)
ASA_VECTORS(float, float)
ASA_VECTORS(double, double)
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// Numbers.
#define ASA_LEAST_MOST(type, a, b)                                             \
  inline type min(a x, b y) { return (type)x < (type)y ? (type)x : (type)y; }  \
  inline type max(a x, b y) { return (type)x > (type)y ? (type)x : (type)y; }
ASA_LEAST_MOST(int, int, int)
ASA_LEAST_MOST(unsigned, unsigned, unsigned)
ASA_LEAST_MOST(unsigned, int, unsigned)
ASA_LEAST_MOST(unsigned, unsigned, int)
ASA_LEAST_MOST(long, long, long)
ASA_LEAST_MOST(unsigned long, unsigned long, unsigned long)
ASA_LEAST_MOST(long long, long long, long long)
ASA_LEAST_MOST(unsigned long long, unsigned long long, unsigned long long)
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }

template <typename To, typename From> inline To asaBits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}
inline float __int_as_float(int x) { return asaBits<float>(x); }
inline int __float_as_int(float x) { return asaBits<int>(x); }
inline float __uint_as_float(unsigned x) { return asaBits<float>(x); }
inline unsigned __float_as_uint(float x) { return asaBits<unsigned>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline void sincospif(float x, float *sine, float *cosine) {
  *sine = (float)sin(M_PI * x);
  *cosine = (float)cos(M_PI * x);
}

// Memory: what one thread does is seen by all at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { asaYield(); }
template <typename V> inline V __ldg(const V *x) { return *x; }
template <typename V> inline V __ldcg(const V *x) { return *x; }
template <typename V> inline V __ldcs(const V *x) { return *x; }
template <typename V> inline void __stcg(V *x, V value) { *x = value; }
template <typename V> inline void __stcs(V *x, V value) { *x = value; }

/**
 * Shared addresses count from dynamic shared memory, either way, which lies on
 * no multiple of more than 16: something static may lie before it.
 */
inline unsigned long __cvta_generic_to_shared(const void *address) {
  return (unsigned)((const char *)address - asaLaunch.shared + ASA_SHARED_START);
}
inline void *asaSharedAt(unsigned address) {
  return asaLaunch.shared + (int)address - ASA_SHARED_START;
}

template <typename V, typename F> inline V asaAtomic(V *at, F next) {
  V old = *at;
  *at = next(old);
  return old;
}
#define ASA_ATOMIC(name, result)                                               \
  template <typename V> inline V name(V *at, decltype(V() + V()) x_) {         \
    V x = (V)x_;                                                               \
    return asaAtomic(at, [=](V old) -> V { return result; });                  \
  }
ASA_ATOMIC(atomicAdd, old + x)
ASA_ATOMIC(atomicSub, old - x)
ASA_ATOMIC(atomicExch, x)
ASA_ATOMIC(atomicMin, old < x ? old : x)
ASA_ATOMIC(atomicMax, old > x ? old : x)
ASA_ATOMIC(atomicAnd, old & x)
ASA_ATOMIC(atomicOr, old | x)
ASA_ATOMIC(atomicXor, old ^ x)
ASA_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
template <typename V> inline V atomicCAS(V *at, V known, V x) {
  return asaAtomic(at, [=](V old) { return old == known ? x : old; });
}

// Barriers and votes of a block.
inline void __syncthreads() { asaBarrier("__syncthreads", 0, 0, 0); }
inline int __syncthreads_or(int vote) {
  return asaBarrier("__syncthreads_or", 0, 0, vote).any;
}
inline int __syncthreads_and(int vote) {
  return asaBarrier("__syncthreads_and", 0, 0, vote).all;
}
inline int __syncthreads_count(int vote) {
  return asaBarrier("__syncthreads_count", 0, 0, vote).count;
}

// Meetings of a warp's lanes.
inline void __syncwarp(unsigned lanes = 0xffffffff) {
  asaMeet("__syncwarp", lanes, false, nullptr, [](void *const *) {});
}

/** Each lane's value to every other. */
template <typename V> struct AsaShuffle {
  V value, result;
  int from;
};
/** A lane that is not there gives bytes of ones: NaN, -1. */
template <typename V>
inline V asaShuffle(const char *what, unsigned lanes, V value, int from) {
  AsaShuffle<V> mine = {value, value, from};
  asaMeet(what, lanes, false, &mine, [](void *const *all) {
    for (int lane = 0; lane < 32; lane++) {
      auto *to = (AsaShuffle<V> *)all[lane];
      if (!to) continue;
      auto *source = (const AsaShuffle<V> *)all[to->from];
      if (source) to->result = source->value;
      else __builtin_memset(&to->result, 0xff, sizeof(V));
    }
  });
  return mine.result;
}
inline int asaLane() { return asaThread->number % 32; }
/** A source past the segment of `width` lanes is the lane itself. */
inline int asaSource(int from, int width) {
  int start = asaLane() / width * width;
  return from < start || from >= start + width ? asaLane() : from;
}
template <typename V>
inline V __shfl_sync(unsigned lanes, V x, int lane, int width = 32) {
  int from = asaLane() / width * width + lane % width;
  return asaShuffle("__shfl_sync", lanes, x, from);
}
template <typename V>
inline V __shfl_xor_sync(unsigned lanes, V x, int reach, int width = 32) {
  // Into an earlier segment, but not into a later one.
  int from = asaLane() ^ reach;
  if (from >= asaLane() / width * width + width) from = asaLane();
  return asaShuffle("__shfl_xor_sync", lanes, x, from);
}
template <typename V>
inline V __shfl_up_sync(unsigned lanes, V x, unsigned reach, int width = 32) {
  int from = asaSource(asaLane() - (int)reach, width);
  return asaShuffle("__shfl_up_sync", lanes, x, from);
}
template <typename V>
inline V __shfl_down_sync(unsigned lanes, V x, unsigned reach, int width = 32) {
  int from = asaSource(asaLane() + (int)reach, width);
  return asaShuffle("__shfl_down_sync", lanes, x, from);
}

struct AsaBallot {
  bool vote;
  unsigned votes, voters;
};
inline AsaBallot asaBallot(const char *what, unsigned lanes, bool vote) {
  AsaBallot mine = {vote, 0, 0};
  asaMeet(what, lanes, false, &mine, [](void *const *all) {
    unsigned votes = 0, voters = 0;
    for (int lane = 0; lane < 32; lane++) {
      auto *each = (AsaBallot *)all[lane];
      if (!each) continue;
      voters |= 1u << lane;
      if (each->vote) votes |= 1u << lane;
    }
    for (int lane = 0; lane < 32; lane++) {
      auto *each = (AsaBallot *)all[lane];
      if (each) *each = {each->vote, votes, voters};
    }
  });
  return mine;
}
inline unsigned __ballot_sync(unsigned lanes, int vote) {
  return asaBallot("__ballot_sync", lanes, vote).votes;
}
inline int __any_sync(unsigned lanes, int vote) {
  return asaBallot("__any_sync", lanes, vote).votes != 0;
}
inline int __all_sync(unsigned lanes, int vote) {
  AsaBallot ballot = asaBallot("__all_sync", lanes, vote);
  return ballot.votes == ballot.voters;
}

// ptx.cuh: the same functions without PTX.
inline void letNextStart() {}
inline void awaitEarlier() { asaAwaitEarlier(); }
inline void prefetch(const void *from, unsigned bytes) {
  if ((unsigned long long)from % 16 > 0 || bytes % 16 > 0) {
    asaGiveUp("cp.async.bulk.prefetch: whole pieces of 16 bytes");
  }
}
inline int4 loadOnce(const void *from, bool isThere) {
  return isThere ? *(const int4 *)from : make_int4(0, 0, 0, 0);
}
inline void storeFourIf(bool isThere, void *at, unsigned low, unsigned high) {
  if (!isThere) return;
  ((unsigned *)at)[0] = low;
  ((unsigned *)at)[1] = high;
}
inline float floatOfHalf(unsigned short x) { return asaFloatOfHalf(x); }
inline unsigned short halfOfFloat(float x) { return asaHalfOfFloat(x); }
inline unsigned short bfloatOfFloat(float x) { return asaBfloatOfFloat(x); }
inline unsigned halvesOfFloats(float low, float high) {
  return halfOfFloat(low) | (unsigned)halfOfFloat(high) << 16;
}
inline unsigned bfloatsOfFloats(float low, float high) {
  return bfloatOfFloat(low) | (unsigned)bfloatOfFloat(high) << 16;
}
inline int sumOfLanes(int x) {
  for (int reach = 16; reach > 0; reach /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, reach);
  }
  return x;
}
inline float exp2Fast(float x) {
  float y = exp2f(fabsf(x) < 1.17549435e-38f ? 0 : x);
  return y < 1.17549435e-38f ? 0 : y;
}
inline void mmaHalf(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                    unsigned b1) {
  AsaMma mine = {d, a, b0, b1};
  asaMeet("mma", 0xffffffff, true, &mine, asaMmaHalf);
}
inline void mmaBfloat(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                      unsigned b1) {
  AsaMma mine = {d, a, b0, b1};
  asaMeet("mma", 0xffffffff, true, &mine, asaMmaBfloat);
}
template <bool TRANSPOSED>
inline void loadMatrices(unsigned (&r)[4], const void *row) {
  AsaLoad mine = {r, row};
  asaMeet("ldmatrix", 0xffffffff, true, &mine,
          TRANSPOSED ? asaLoadMatricesTransposed : asaLoadMatrices);
}
template <bool TRANSPOSED>
inline void loadMatrices(unsigned (&r)[4], unsigned address) {
  loadMatrices<TRANSPOSED>(r, (const void *)asaSharedAt(address));
}
inline void cpAsync16(void *shared, const void *global, bool valid) {
  asaCopyAsync(shared, global, valid, 16);
}
typedef unsigned long long CachePolicy;
inline CachePolicy leavesFirst() { return 0; }
inline void cpAsync16(void *shared, const void *global, bool valid,
                      CachePolicy) {
  asaCopyAsync(shared, global, valid, 16);
}
inline void cpAsync8(void *shared, const void *global, bool valid) {
  asaCopyAsync(shared, global, valid, 8);
}
inline void cpAsyncCommit() { asaCommitCopies(); }
template <int PENDING> inline void cpAsyncWait() { asaWaitForCopies(PENDING); }

// hopper-ptx.cuh: the same, in the same way.
inline unsigned warpBits(unsigned bits) {
  asaMeet("redux", 0xffffffff, false, &bits, [](void *const *all) {
    unsigned some = 0;
    for (int lane = 0; lane < 32; lane++) some |= *(unsigned *)all[lane];
    for (int lane = 0; lane < 32; lane++) *(unsigned *)all[lane] = some;
  });
  return bits;
}
typedef unsigned long long MatrixPlace;
typedef unsigned long long Mbarrier;
inline void cpAsync4(void *shared, const void *global, bool valid) {
  asaCopyAsync(shared, global, valid, 4);
}
inline void wgmmaFence() { asaWgmmaFence(); }
inline void wgmmaCommit() { asaCommitProducts(); }
template <int PENDING> inline void wgmmaWait() { asaWaitForProducts(PENDING); }
template <typename V> inline void hold(V &) {}
inline void renew(unsigned &) {}
template <typename V> inline void renew(V *&) {}
template <int COUNT> inline void forget(float (&x)[COUNT][4]) {
  memset(x, 0xff, sizeof x);
}
template <int COUNT> inline void takeRegisters() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "setmaxnreg");
}
template <int COUNT> inline void giveRegisters() { takeRegisters<COUNT>(); }
inline void meetAt(int id, int threads) { asaBarrier("bar", id, threads, 0); }
inline void arriveAt(int id, int threads) {
  asaBarrier("bar", id, threads, 0, false);
}
inline void storeMatrices(void *row, const unsigned (&r)[4]) {
  AsaLoad mine = {(unsigned *)r, row};
  asaMeet("stmatrix", 0xffffffff, true, &mine, asaStoreMatrices);
}
inline void fenceProducts() { asaFenceProducts(); }
// Blocks run one behind the other: it is for another warp of this one.
inline void awaitCount(const int *counter, int count) {
  for (int n = 0; *(const volatile int *)counter < count; n++) {
    if (n == 1 << 20) asaGiveUp("awaitCount: no block before this one adds");
    asaYield();
  }
}
inline void addToCount(int *counter) { ++*counter; }
inline void addFour(float4 *at, float4 x) {
  *at = {at->x + x.x, at->y + x.y, at->z + x.z, at->w + x.w};
}
// Late, as a card might: what is read must not change until the thread waits.
struct AsaBulk {
  float4 *at = nullptr;
  const void *shared = nullptr;
  // Not 0: what begins as 0 is a block's shared memory.
  int pieces = -1;
  bool adds = false;
};
inline AsaBulk asaBulks[1024];
inline void asaStartBulk(float4 *at, const void *shared, int bytes, bool adds) {
  AsaBulk &own = asaBulks[threadIdx.x];
  if (bytes % 16 > 0) asaGiveUp("cp.async.bulk: whole pieces of 16 bytes");
  if (own.pieces >= 0) asaGiveUp("cp.async.bulk: the thread has not waited");
  own.at = at;
  own.shared = shared;
  own.pieces = bytes / 16;
  own.adds = adds;
}
inline void bulkAdd(float4 *at, const void *shared, int bytes) {
  asaStartBulk(at, shared, bytes, true);
}
inline void bulkStore(float4 *at, const void *shared, int bytes) {
  asaStartBulk(at, shared, bytes, false);
}
inline void bulkWait() {
  AsaBulk &own = asaBulks[threadIdx.x];
  const float4 *from = (const float4 *)own.shared;
  for (int i = 0; i < own.pieces; i++) {
    if (own.adds) {
      addFour(own.at + i, from[i]);
    } else {
      own.at[i] = from[i];
    }
  }
  own.pieces = -1;
}
inline void meetCluster() { asaMeetCluster(); }
template <typename V> inline V loadOfBlock(const V *own, int block) {
  return *(const V *)asaOfBlock(own, block, sizeof(V));
}
inline void initBarrier(Mbarrier *at, int count) { asaInitBarrier(at, count); }
inline void arrive(Mbarrier *at) { asaArrive(at, 0); }
struct alignas(64) Boxes {
  AsaBoxes as;
};
inline void arriveExpecting(Mbarrier *at, int bytes) { asaArrive(at, bytes); }
inline void copyBox(void *shared, const Boxes &boxes, int column, int head,
                    int row, Mbarrier *barrier) {
  asaCopyBox(shared, boxes.as, {column, head, row}, barrier);
}
inline void copyBox(void *shared, const Boxes &boxes, int column, int head,
                    int row, Mbarrier *barrier, CachePolicy) {
  copyBox(shared, boxes, column, head, row, barrier);
}
inline bool hasEnded(Mbarrier *at, unsigned parity) {
  return asaHasEnded(at, parity);
}
inline void await(Mbarrier *at, unsigned parity) { asaAwait(at, parity); }
template <int COLUMNS> struct Wgmma {
  typedef float Sums[COLUMNS / 8][4];
  template <bool TRANSPOSED, bool TRANSPOSED_A = false>
  static void half(Sums &d, MatrixPlace a, MatrixPlace b, int more) {
    asaWgmma({d[0], nullptr, a, b, COLUMNS, TRANSPOSED, true, more != 0,
              TRANSPOSED_A});
  }
  template <bool TRANSPOSED>
  static void half(Sums &d, const unsigned (&a)[4], MatrixPlace b, int more) {
    asaWgmma({d[0], a, 0, b, COLUMNS, TRANSPOSED, true, more != 0, false});
  }
  template <bool TRANSPOSED, bool TRANSPOSED_A = false>
  static void bfloat(Sums &d, MatrixPlace a, MatrixPlace b, int more) {
    asaWgmma({d[0], nullptr, a, b, COLUMNS, TRANSPOSED, false, more != 0,
              TRANSPOSED_A});
  }
  template <bool TRANSPOSED>
  static void bfloat(Sums &d, const unsigned (&a)[4], MatrixPlace b, int more) {
    asaWgmma({d[0], a, 0, b, COLUMNS, TRANSPOSED, false, more != 0, false});
  }
};

// How a launch's packed arguments reach a kernel.
template <auto KERNEL> struct AsaEntry;
template <typename... A, void (*KERNEL)(A...)> struct AsaEntry<KERNEL> {
  static constexpr unsigned next(unsigned at, unsigned bytes, unsigned aligned) {
    return (at + aligned - 1) / aligned * aligned + bytes;
  }
  static constexpr unsigned bytes() {
    unsigned at = 0;
    ((at = next(at, sizeof(A), alignof(A))), ...);
    return at;
  }
  template <typename V> static V take(const char *arguments, unsigned &at) {
    at = next(at, sizeof(V), alignof(V));
    V value;
    __builtin_memcpy(&value, arguments + at - sizeof(V), sizeof(V));
    return value;
  }
  static void run(const char *arguments) {
    unsigned at = 0;
    // Braces: from left to right.
    struct Call {
      Call(A... values) { KERNEL(values...); }
    } call{take<A>(arguments, at)...};
    (void)call;
  }
};
#define ASA_ENTRY(name, mostThreads, cluster)                                  \
  extern "C" __attribute__((visibility("default")))                            \
  const AsaKernel asaKernel_##name = {AsaEntry<&name>::run,                    \
                                      AsaEntry<&name>::bytes(), mostThreads,   \
                                      cluster};
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];
#define ASA_MODULE(sharedAlignment)                                            \
  extern "C" __attribute__((visibility("default")))                            \
  const AsaModule asaModule = {__bss_start, _end, sharedAlignment};
