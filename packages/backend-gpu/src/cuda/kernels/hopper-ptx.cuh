// The instructions that only Hopper has (sm_90a), as ptx.cuh: products of a
// warpgroup, which is four warps from a multiple of four on, barriers in shared
// memory, and what orders them. Sections are those of the PTX ISA, version 8.
#pragma once

/** A matrix in shared memory, as products are told of it (9.7.15.5.1.2.2). */
typedef unsigned long long MatrixPlace;

/** wgmma.fence (9.7.15.7.1): before products, behind what writes registers. */
__device__ inline void wgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/** The products since the last one are a group. */
__device__ inline void wgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/** Until at most the last PENDING groups are not done. */
template <int PENDING> __device__ inline void wgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(PENDING) : "memory");
}

/** Registers that products in flight use: nothing moves them from here. */
template <int COUNT> __device__ inline void hold(float (&x)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) asm volatile("" : "+f"(x[n][e])::"memory");
  }
}
template <int COUNT> __device__ inline void hold(unsigned (&x)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) asm volatile("" : "+r"(x[n][e])::"memory");
  }
}
/** What they held is of no use: products that start anew need no copy of it. */
template <int COUNT> __device__ inline void forget(float (&x)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) asm volatile("" : "=f"(x[n][e]));
  }
}

/** Nothing made of x stays in registers from before. */
__device__ inline void renew(unsigned &x) { asm volatile("" : "+r"(x)); }
/** The same of an address: what is added to it stays an immediate. */
template <typename V> __device__ inline void renew(V *&x) {
  asm volatile("" : "+l"(x));
}

/** cp.async of 4 bytes, as those of ptx.cuh. */
__device__ inline void cpAsync4(void *shared, const void *global, bool valid) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(address), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}

/** redux.sync (9.7.14.10): the bits that any lane of the warp has. */
__device__ inline unsigned warpBits(unsigned bits) {
  return __reduce_or_sync(0xffffffff, bits);
}

/** setmaxnreg (9.7.19.5): of all warps of a warpgroup. */
template <int COUNT> __device__ inline void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(COUNT));
}
template <int COUNT> __device__ inline void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(COUNT));
}

/** bar (9.7.13.1): barrier `id` of 16, of so many threads of the block. */
__device__ inline void meetAt(int id, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}
/** Counts there, and goes on. */
__device__ inline void arriveAt(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

/**
 * fence.proxy.async (9.7.13.4): what the thread wrote to shared memory is seen
 * by products of those that it meets later.
 */
__device__ inline void fenceProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/**
 * A counter in device memory that blocks of threads wait for, ld.acquire
 * (9.7.9.8): what was done before its additions is seen behind the wait.
 */
__device__ inline void awaitCount(const int *counter, int count) {
  int now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                 : "=r"(now)
                 : "l"(counter)
                 : "memory");
  } while (now < count);
}
/** red.release (9.7.13.6): also of what the thread knows others to have done. */
__device__ inline void addToCount(int *counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;"
               :
               : "l"(counter)
               : "memory");
}
/** red.v4 (9.7.13.6): *at += x in the L2 cache, while the thread goes on. */
__device__ inline void addFour(float4 *at, float4 x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
}

/**
 * cp.reduce.async.bulk, cp.async.bulk (9.7.9.25): adds so many bytes of f32 in
 * shared memory to those at `at`, or puts them there; a multiple of 16. The
 * thread goes on; others' writes of what is read are behind `fenceProducts`.
 */
__device__ inline void bulkAdd(float4 *at, const void *shared, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32"
               " [%0], [%1], %2;\n"
               "cp.async.bulk.commit_group;"
               :
               : "l"(at), "r"((unsigned)__cvta_generic_to_shared(shared)),
                 "r"(bytes)
               : "memory");
}
__device__ inline void bulkStore(float4 *at, const void *shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group"
               " [%0], [%1], %2;\n"
               "cp.async.bulk.commit_group;"
               :
               : "l"(at), "r"((unsigned)__cvta_generic_to_shared(shared)),
                 "r"(bytes)
               : "memory");
}
/** Until all that the thread has started is there. */
__device__ inline void bulkWait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/**
 * barrier.cluster (9.7.13.4): of all threads of the cluster; what each wrote
 * before it, the others read behind it.
 */
__device__ inline void meetCluster() {
  asm volatile("barrier.cluster.arrive.release;\n"
               "barrier.cluster.wait.acquire;" ::
                   : "memory");
}
/** mapa (9.7.9.24), ld.shared::cluster: what another block of the cluster has there. */
__device__ inline unsigned addressOfBlock(const void *own, int block) {
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"((unsigned)__cvta_generic_to_shared(own)), "r"(block));
  return address;
}
__device__ inline float2 loadOfBlock(const float2 *own, int block) {
  float2 x;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
               : "=f"(x.x), "=f"(x.y)
               : "r"(addressOfBlock(own, block)));
  return x;
}
__device__ inline float4 loadOfBlock(const float4 *own, int block) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(addressOfBlock(own, block)));
  return x;
}

/** mbarrier (9.7.13.15): a phase ends when so many threads have arrived. */
typedef unsigned long long Mbarrier;
__device__ inline void initBarrier(Mbarrier *barrier, int count) {
  unsigned address = (unsigned)__cvta_generic_to_shared(barrier);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(address), "r"(count)
               : "memory");
}
__device__ inline void arrive(Mbarrier *barrier) {
  unsigned address = (unsigned)__cvta_generic_to_shared(barrier);
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];"
               :
               : "r"(address)
               : "memory");
}
/** Whether a phase of that parity, or the one before it, has ended last. */
__device__ inline bool hasEnded(Mbarrier *barrier, unsigned parity) {
  unsigned address = (unsigned)__cvta_generic_to_shared(barrier);
  unsigned done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(address), "r"(parity)
      : "memory");
  return done;
}
/** Until the phase of that parity has ended; at first that of 1 has. */
__device__ inline void await(Mbarrier *barrier, unsigned parity) {
  while (!hasEnded(barrier, parity)) {}
}

/**
 * A tensor `[rows, heads, columns]` as copies of boxes see it (5.5), which the
 * driver makes: cuTensorMapEncodeTiled.
 */
struct alignas(64) Boxes {
  unsigned long long words[16];
};
/** Arrives, and the phase waits for so many bytes of copies. */
__device__ inline void arriveExpecting(Mbarrier *barrier, int bytes) {
  unsigned address = (unsigned)__cvta_generic_to_shared(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(address), "r"(bytes)
               : "memory");
}
/**
 * cp.async.bulk.tensor (9.7.9.25.5): the box from there on, zeros outside of the
 * tensor, in the layout of 128-byte swizzle; `barrier` counts the bytes.
 */
__device__ inline void copyBox(void *shared, const Boxes &boxes, int column,
                               int head, int row, Mbarrier *barrier) {
  unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  unsigned counts = (unsigned)__cvta_generic_to_shared(barrier);
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile"
               ".mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
               :
               : "r"(to), "l"(&boxes), "r"(column), "r"(head), "r"(row),
                 "r"(counts)
               : "memory");
}
/** The same of what the L2 cache need not keep. */
__device__ inline void copyBox(void *shared, const Boxes &boxes, int column,
                               int head, int row, Mbarrier *barrier,
                               CachePolicy policy) {
  unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  unsigned counts = (unsigned)__cvta_generic_to_shared(barrier);
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile"
               ".mbarrier::complete_tx::bytes.L2::cache_hint"
               " [%0], [%1, {%2, %3, %4}], [%5], %6;"
               :
               : "r"(to), "l"(&boxes), "r"(column), "r"(head), "r"(row),
                 "r"(counts), "l"(policy)
               : "memory");
}

/**
 * wgmma.mma_async (9.7.15.5.2), m64nNk16: d = a b + (more ? d : 0), in f32. The
 * warps of the group have 16 rows each, laid out in a and d as those of mma. a
 * in registers or, rows of k, TRANSPOSED_A rows of m, in shared memory; b there
 * too, its columns rows of k, TRANSPOSED rows of n.
 */
template <int COLUMNS> struct Wgmma;

// The registers of d by number, and as operands, for 16 columns more each.
#define ASA_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define ASA_NAMES_32 ASA_NAMES_16 "," "%8,%9,%10,%11,%12,%13,%14,%15"
#define ASA_NAMES_48 ASA_NAMES_32 "," "%16,%17,%18,%19,%20,%21,%22,%23"
#define ASA_NAMES_64 ASA_NAMES_48 "," "%24,%25,%26,%27,%28,%29,%30,%31"
#define ASA_NAMES_80 ASA_NAMES_64 "," "%32,%33,%34,%35,%36,%37,%38,%39"
#define ASA_NAMES_96 ASA_NAMES_80 "," "%40,%41,%42,%43,%44,%45,%46,%47"
#define ASA_NAMES_112 ASA_NAMES_96 "," "%48,%49,%50,%51,%52,%53,%54,%55"
#define ASA_NAMES_128 ASA_NAMES_112 "," "%56,%57,%58,%59,%60,%61,%62,%63"
#define ASA_NAMES_144 ASA_NAMES_128 "," "%64,%65,%66,%67,%68,%69,%70,%71"
#define ASA_NAMES_160 ASA_NAMES_144 "," "%72,%73,%74,%75,%76,%77,%78,%79"
#define ASA_NAMES_176 ASA_NAMES_160 "," "%80,%81,%82,%83,%84,%85,%86,%87"
#define ASA_NAMES_192 ASA_NAMES_176 "," "%88,%89,%90,%91,%92,%93,%94,%95"
#define ASA_FOUR(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ASA_SUMS_16(d) ASA_FOUR(d, 0), ASA_FOUR(d, 1)
#define ASA_SUMS_32(d) ASA_SUMS_16(d), ASA_FOUR(d, 2), ASA_FOUR(d, 3)
#define ASA_SUMS_48(d) ASA_SUMS_32(d), ASA_FOUR(d, 4), ASA_FOUR(d, 5)
#define ASA_SUMS_64(d) ASA_SUMS_48(d), ASA_FOUR(d, 6), ASA_FOUR(d, 7)
#define ASA_SUMS_80(d) ASA_SUMS_64(d), ASA_FOUR(d, 8), ASA_FOUR(d, 9)
#define ASA_SUMS_96(d) ASA_SUMS_80(d), ASA_FOUR(d, 10), ASA_FOUR(d, 11)
#define ASA_SUMS_112(d) ASA_SUMS_96(d), ASA_FOUR(d, 12), ASA_FOUR(d, 13)
#define ASA_SUMS_128(d) ASA_SUMS_112(d), ASA_FOUR(d, 14), ASA_FOUR(d, 15)
#define ASA_SUMS_144(d) ASA_SUMS_128(d), ASA_FOUR(d, 16), ASA_FOUR(d, 17)
#define ASA_SUMS_160(d) ASA_SUMS_144(d), ASA_FOUR(d, 18), ASA_FOUR(d, 19)
#define ASA_SUMS_176(d) ASA_SUMS_160(d), ASA_FOUR(d, 20), ASA_FOUR(d, 21)
#define ASA_SUMS_192(d) ASA_SUMS_176(d), ASA_FOUR(d, 22), ASA_FOUR(d, 23)

/** R0 .. R6: numbers of the operands behind d. */
#define ASA_WGMMA_OF(NAME, TYPE, N, R0, R1, R2, R3, R4, R5, R6)                \
  template <bool TRANSPOSED, bool TRANSPOSED_A = false>                         \
  __device__ static void NAME(float (&d)[N / 8][4], MatrixPlace a,             \
                              MatrixPlace b, int more) {                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " R2 ", 0;\n"               \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE        \
                 " {" ASA_NAMES_##N "}, " R0 ", " R1 ", p, 1, 1, " R4 ", " R3  \
                 ";\n}"                                                        \
                 : ASA_SUMS_##N(d)                                             \
                 : "l"(a), "l"(b), "r"(more), "n"(TRANSPOSED ? 1 : 0),         \
                   "n"(TRANSPOSED_A ? 1 : 0));                                 \
  }                                                                            \
  template <bool TRANSPOSED>                                                   \
  __device__ static void NAME(float (&d)[N / 8][4], const unsigned (&a)[4],    \
                              MatrixPlace b, int more) {                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " R5 ", 0;\n"               \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE        \
                 " {" ASA_NAMES_##N "}, {" R0 "," R1 "," R2 "," R3 "}, " R4    \
                 ", p, 1, 1, " R6 ";\n}"                                       \
                 : ASA_SUMS_##N(d)                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),         \
                   "r"(more), "n"(TRANSPOSED ? 1 : 0));                        \
  }
#define ASA_WGMMA(N, ...)                                                      \
  template <> struct Wgmma<N> {                                                \
    ASA_WGMMA_OF(half, "f16.f16", N, __VA_ARGS__)                              \
    ASA_WGMMA_OF(bfloat, "bf16.bf16", N, __VA_ARGS__)                          \
  };
ASA_WGMMA(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
ASA_WGMMA(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
ASA_WGMMA(48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
ASA_WGMMA(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
ASA_WGMMA(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
ASA_WGMMA(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
ASA_WGMMA(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
ASA_WGMMA(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ASA_WGMMA(144, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
ASA_WGMMA(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
ASA_WGMMA(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
ASA_WGMMA(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")

/** stmatrix (9.7.14.5.16): as ldmatrix lays out four matrices, back again. */
__device__ inline void storeMatrices(void *row, const unsigned (&r)[4]) {
  unsigned address = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
