// Every instruction of PTX that C++ has no word for, in one place: a compiler
// that knows no PTX needs no more than another file of this name. Sections are
// those of the PTX ISA, version 8.
//
// Of a warp's tile of 16 rows by 8 columns, lane 4 g + t has the elements
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#pragma once

/** cvt (9.7.9.21): numbers of 16 bits as their bits; to nearest even. */
__device__ inline float floatOfHalf(unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ inline unsigned short halfOfFloat(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ inline unsigned short bfloatOfFloat(float x) {
  unsigned short y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

/** cvt (9.7.9.21): two numbers in one register, the first in its lower half. */
__device__ inline unsigned halvesOfFloats(float low, float high) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline unsigned bfloatsOfFloats(float low, float high) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

#if __CUDA_ARCH__ >= 900
/**
 * griddepcontrol (9.7.13.13): the kernel behind this one may start, if it starts
 * early, once all blocks of threads have come here or ended.
 */
__device__ inline void letNextStart() {
  asm volatile("griddepcontrol.launch_dependents;");
}
/** The kernel before this one has ended, and all that it wrote is there. */
__device__ inline void awaitEarlier() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/** cp.async.bulk.prefetch (9.7.9.25.4.3): whole pieces of 16 bytes, to the L2 cache. */
__device__ inline void prefetch(const void *from, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
               :
               : "l"(from), "r"(bytes));
}
#else
__device__ inline void letNextStart() {}
__device__ inline void awaitEarlier() {}
__device__ inline void prefetch(const void *, unsigned) {}
#endif

/**
 * ld.global (9.7.9.8): 16 bytes that are read once, around the L1 cache;
 * zeros, and nothing read, where they are not there.
 */
__device__ inline int4 loadOnce(const void *from, bool isThere) {
  int4 x = make_int4(0, 0, 0, 0);
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.u32 p, %5, 0;\n"
               "@p ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               "}"
               : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)
               : "l"(from), "r"((unsigned)isThere));
  return x;
}

/** st: where it is, without a branch around it. */
__device__ inline void storeFourIf(bool isThere, void *at, unsigned low,
                                   unsigned high) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.u32 p, %0, 0;\n"
               "@p st.global.v2.b32 [%1], {%2, %3};\n"
               "}"
               :
               : "r"((unsigned)isThere), "l"(at), "r"(low), "r"(high)
               : "memory");
}

/** redux.sync (9.7.13.8): the sum over a warp's lanes, for all of them. */
__device__ inline int sumOfLanes(int x) {
  int sum;
  asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(x));
  return sum;
}

/** ex2 (9.7.3.22): 2^x within 2 ulp; subnormal numbers are 0. */
__device__ inline float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/**
 * mma.m16n8k16 (9.7.14.5.8): d += a b, d in f32. Two neighbours of a row share
 * a register of a: (g, 2t ..), (g + 8, 2t ..), (g, 2t + 8 ..),
 * (g + 8, 2t + 8 ..). Two neighbours of a column share one of b:
 * (2t .., g), (2t + 8 .., g).
 */
__device__ inline void mmaHalf(float (&d)[4], const unsigned (&a)[4],
                               unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mmaBfloat(float (&d)[4], const unsigned (&a)[4],
                                 unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/**
 * ldmatrix (9.7.14.5.15): four 8 by 8 matrices of 16-bit elements in shared
 * memory. Lane 8 j + r gives the address of row r of matrix j; lane 4 g + t
 * gets (g, 2t), (g, 2t + 1) of matrix j in r[j], TRANSPOSED (2t, g),
 * (2t + 1, g).
 */
template <bool TRANSPOSED>
__device__ inline void loadMatrices(unsigned (&r)[4], unsigned address) {
  if (TRANSPOSED) {
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(address)
        : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

template <bool TRANSPOSED>
__device__ inline void loadMatrices(unsigned (&r)[4], const void *row) {
  loadMatrices<TRANSPOSED>(r, (unsigned)__cvta_generic_to_shared(row));
}

/**
 * cp.async (9.7.9.25.3): 16 bytes from device to shared memory, both on a
 * multiple of 16, while the thread goes on; zeros, and nothing read, unless
 * `valid`.
 */
__device__ inline void cpAsync16(void *shared, const void *global, bool valid) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
/** createpolicy (9.7.9.17): lines that leave the L2 cache before others do. */
typedef unsigned long long CachePolicy;
__device__ inline CachePolicy leavesFirst() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void cpAsync16(void *shared, const void *global, bool valid,
                                 CachePolicy policy) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
               :
               : "r"(address), "l"(global), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}
/** As many as 8, each on a multiple of 8. */
__device__ inline void cpAsync8(void *shared, const void *global, bool valid) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :
               : "r"(address), "l"(global), "r"(valid ? 8 : 0)
               : "memory");
}
/** The copies since the last one are a group. */
__device__ inline void cpAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/** Until at most the last PENDING of the thread's groups are not there. */
template <int PENDING> __device__ inline void cpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}
