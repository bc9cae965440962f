// o = softmax(scores) v as flash-forward.cu, where a unit has 16 rows at most: of
// decoding, on Hopper. A warp has 16 keys at a time, which the card copies as
// boxes of 64 columns to a ring of the warp's own (hopper.cuh has the layout).
// No warp waits for another until all have seen their keys.
//
// Blocks of threads take turns at a unit's keys. Those of a cluster add up their
// results in shared memory; where there are several clusters, their results stay
// in f32 until `joinParts` has joined them.
//
// UNIT heads share keys and lists; KEY_UNITS units a key head, LIST_UNITS a list.
// What the compiler knows needs no division on the way to the first key: LENGTH
// and STRIDE of compressed keys, too.
// ONCE: the L2 cache need not keep keys, of which it holds few.
#include "flash-softmax.cuh"
#include "hopper-ptx.cuh"

static_assert(ROWS == 16 && SPAN == 16, "one tile of rows, 16 keys a warp");
#if VIEW == SELECTED
static_assert(BLOCK % 16 == 0, "a warp's keys are of one block");
#endif

/** Elements of a chunk: 16 keys by 64 columns. */
constexpr int CHUNK = 16 * 64;
__device__ constexpr int chunksOf(int columns) { return (columns + 63) / 64; }
__device__ constexpr int stepsOf(int columns) { return (columns + 15) / 16; }
/** Where rotary columns and values begin in a place of the ring; its elements. */
constexpr int ROTARY_AT = chunksOf(WIDTH) * CHUNK;
constexpr int VALUES_AT = LATENT ? 0 : ROTARY_AT + chunksOf(ROPE) * CHUNK;
constexpr int PLACE = ROTARY_AT + chunksOf(ROPE) * CHUNK +
                      (LATENT ? 0 : chunksOf(VALUE) * CHUNK);
/** Columns of keys in steps of 16: content, then rotary ones. */
constexpr int CONTENT_STEPS = stepsOf(WIDTH);
constexpr int STEPS = CONTENT_STEPS + stepsOf(ROPE);
/** A warp's sums, in the memory of its ring: eight floats further a row. */
constexpr int PITCH = VALUES + 8;
static_assert(16 * PITCH * sizeof(float) <= STAGES * PLACE * sizeof(T), "room");

/** Keys and values as boxes of 16 rows. */
struct Maps {
  Boxes k;
#if !LATENT
  Boxes v;
#endif
#if ROPE > 0
  Boxes kRope;
#endif
};

/** One structure: only then is it known where boxes lie. */
struct Arguments {
  Maps maps;
  Call u;
  Result *o;
  float *lse;
};

/** What a sequence's rows of a unit are, and the slots of keys they walk over. */
struct Rows {
  Sequence s;
  int unit, heads, past;
  int first, end;
  const int *list;

  __device__ Rows(const Call &u)
      : s(u.sequences[blockIdx.z]), unit(blockIdx.y), heads(u.heads) {
    past = s.keyCount - s.queryCount;
    bool isAny = s.queryCount > 0;
    first = isAny ? firstSeen(u, past) : 0;
    end = isAny ? seenEnd(s.keyCount - 1) : 0;
    list = 0;
#if VIEW == SELECTED
    // All queries have one leader.
    list = u.indices + ((i64)s.leaderStart * u.lists + unit / LIST_UNITS) * u.count;
    if (isAny) end = u.count * BLOCK;
#endif
  }
  /** Behind the last key that a position sees. */
  __device__ static int seenEnd(int t) {
    return VIEW == COMPRESSED ? blocksOf(t + 1, LENGTH, STRIDE) : t + 1;
  }
  __device__ bool has(int row) const { return row / UNIT < s.queryCount; }
  /** Its number q H + head. */
  __device__ int numberOf(int row) const {
    return (s.queryStart + row / UNIT) * heads + unit * UNIT + row % UNIT;
  }
  __device__ int keyHead() const { return unit / KEY_UNITS; }
  __device__ int there() const {
    return VIEW == COMPRESSED ? blocksOf(s.keyCount, LENGTH, STRIDE) : s.keyCount;
  }
  /** The first of 16 keys from a slot on; -1 for none. */
  __device__ int keyAt(int slot) const {
#if VIEW == SELECTED
    int block = __ldg(list + slot / BLOCK);
    int at = block * BLOCK + slot % BLOCK;
    return block < 0 || at >= s.keyCount ? -1 : at;
#else
    return slot;
#endif
  }
};

/**
 * Rows of queries as first operands. Columns behind theirs are 0; rows that are
 * none have those of another one.
 */
template <int COLUMNS, int COUNT>
__device__ inline void loadQueries(unsigned (*queries)[4], const T *base,
                                   const int (&row)[2]) {
  const unsigned *from[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    from[half] = (const unsigned *)(base + (i64)row[half] * COLUMNS) +
                 threadIdx.x % 4;
  }
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int column = 16 * k + e / 2 * 8;
      queries[k][e] = column < COLUMNS ? __ldg(from[e % 2] + column / 2) : 0;
    }
  }
}

/** A warp's ring: places for 16 keys, and a barrier of each. */
struct Ring {
  T *tiles;
  Mbarrier *full;
#if ONCE
  // All else would leave the L2 cache for them.
  CachePolicy policy = leavesFirst();
#endif

  /** By one lane: the keys from row `row` of the tensors on. */
  __device__ void fill(const Maps &maps, int place, int head, int row) const {
    T *tile = tiles + place * PLACE;
    Mbarrier *barrier = full + place;
    arriveExpecting(barrier, PLACE * sizeof(T));
    copy<WIDTH>(tile, maps.k, head, row, barrier);
#if ROPE > 0
    // Those of a latent past are for all key heads.
#pragma unroll
    for (int n = 0; n < chunksOf(ROPE); n++) {
      copyBox(tile + ROTARY_AT + n * CHUNK, maps.kRope, 64 * n, 0, row, barrier);
    }
#endif
#if !LATENT
    copy<VALUE>(tile + VALUES_AT, maps.v, head, row, barrier);
#endif
  }
  template <int COLUMNS>
  __device__ void copy(T *tile, const Boxes &boxes, int head, int row,
                       Mbarrier *barrier) const {
#pragma unroll
    for (int n = 0; n < chunksOf(COLUMNS); n++) {
      T *to = tile + n * CHUNK;
#if ONCE
      copyBox(to, boxes, 64 * n, head, row, barrier, policy);
#else
      copyBox(to, boxes, 64 * n, head, row, barrier);
#endif
    }
  }
};

/**
 * Values from key `count` of a tile on are 0: boxes know of no sequence, and
 * 0 times what lies behind its keys need not be 0.
 */
__device__ inline void clearValues(T *tile, int count) {
  constexpr int PIECES = chunksOf(VALUE) * 8;
  for (int i = threadIdx.x % 32; i < (16 - count) * PIECES; i += 32) {
    int row = count + i / PIECES;
    int piece = i % PIECES;
    T *to = tile + piece / 8 * CHUNK + row * 64 + piece % 8 * 8;
    *(int4 *)to = make_int4(0, 0, 0, 0);
  }
  // Each lane that has written: boxes come there again.
  fenceProducts();
  __syncwarp();
}

/**
 * Where a lane reads a chunk: piece `piece` of row `row`. Pieces two further, and
 * four, are that address XOR 32, and 64; chunks follow one another.
 */
__device__ inline unsigned placeIn(const T *tile, int row, int piece) {
  unsigned address = (unsigned)__cvta_generic_to_shared(tile);
  return address + row * 128 + (piece ^ row % 8) * 16;
}
/** The same for columns 16 n from the chunk's first on. */
__device__ inline unsigned columnsAt(unsigned place, int n) {
  return (place ^ 32 * (n % 4)) + n / 4 * (CHUNK * (int)sizeof(T));
}

/** scores = the warp's rows times 16 keys. */
__device__ inline void multiplyKeys(float (&scores)[2][4],
                                    const unsigned (&queries)[STEPS][4],
                                    const T *tile) {
  int lane = threadIdx.x % 32;
  unsigned own = placeIn(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  // Products that wait for none of their neighbours.
  float others[2][4];
  clear(scores);
  clear(others);
#pragma unroll
  for (int k = 0; k < STEPS; k++) {
    // Rotary columns begin with a chunk.
    int step = k < CONTENT_STEPS ? k : k - CONTENT_STEPS + ROTARY_AT / CHUNK * 4;
    unsigned keys[4];
    loadMatrices<false>(keys, columnsAt(own, step));
    multiply(k % 2 ? others : scores, 0, queries[k], keys);
  }
#pragma unroll
  for (int n = 0; n < 2; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) scores[n][e] += others[n][e];
  }
}

/** sums += weights times the values of 16 keys. */
__device__ inline void addValues(float (&sums)[VALUES / 8][4],
                                 const unsigned (&weights)[4], const T *tile) {
  int lane = threadIdx.x % 32;
  unsigned own = placeIn(tile, lane % 16, lane / 16);
#pragma unroll
  for (int n = 0; n < VALUES / 16; n++) {
    unsigned values[4];
    loadMatrices<true>(values, columnsAt(own, n));
    multiply(sums, n, weights, values);
  }
}

/** Parts of a row: of each its reference and its total, as they are added up. */
template <int COUNT, typename Part> struct Joined {
  float factors[COUNT];
  float top, total;

  __device__ Joined(Part part) {
    float2 known[COUNT];
    top = -INFINITE;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      known[n] = part(n);
      top = fmaxf(top, known[n].x);
    }
    float reference = top == -INFINITE ? 0 : top;
    total = 0;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      factors[n] = exp2Fast(known[n].x - reference);
      total += known[n].y * factors[n];
    }
  }
  /** The sum of four columns, of each part `columns(n)`. */
  template <typename Columns> __device__ float4 sum(Columns columns) const {
    float4 parts[COUNT];
#pragma unroll
    for (int n = 0; n < COUNT; n++) parts[n] = columns(n);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      sum.x += factors[n] * parts[n].x;
      sum.y += factors[n] * parts[n].y;
      sum.z += factors[n] * parts[n].z;
      sum.w += factors[n] * parts[n].w;
    }
    return sum;
  }
};
template <int COUNT, typename Part> __device__ Joined<COUNT, Part> join(Part part) {
  return Joined<COUNT, Part>(part);
}

/** Where results go: four columns of a row, or its LSE. */
struct Results {
  const Rows &rows;
  Result *o;
  float *lse;

  __device__ i64 rowOf(int row) const {
    return (i64)rows.numberOf(row) * (gridDim.x / CLUSTER) + blockIdx.x / CLUSTER;
  }
  __device__ void put(int row, int c, float4 x, float factor) const {
    if (!rows.has(row)) return;
    Result *to = o + rowOf(row) * VALUE + c;
#if SPLIT
    *(float4 *)to =
        make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
#else
    *(uint2 *)to = make_uint2(pair(x.x * factor, x.y * factor, T()),
                              pair(x.z * factor, x.w * factor, T()));
#endif
  }
  __device__ void close(int row, float top, float total) const {
    if (!rows.has(row)) return;
    lse[rowOf(row)] = total == 0 ? -INFINITE : (top + __log2f(total)) / LOG2_E;
  }
};
__device__ inline float inverseOf(float total) {
  return total == 0 ? 0 : __fdividef(1, total);
}

extern "C" __global__ void __cluster_dims__(CLUSTER)
    __launch_bounds__(THREADS, BLOCKS)
        hopperDecode(const __grid_constant__ Arguments given) {
  letNextStart();
  const Call &u = given.u;
  extern __shared__ int4 memory[];
  __shared__ Mbarrier full[WARPS][STAGES];
  __shared__ float2 known[WARPS][16];
  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  T *tiles = tilesIn(memory);
  Ring ring = {tiles + warp * (STAGES * PLACE), full[warp]};
  if (lane == 0) {
#pragma unroll
    for (int n = 0; n < STAGES; n++) initBarrier(&ring.full[n], 1);
    // Boxes count there.
    fenceProducts();
  }
  __syncwarp();

  Rows rows(u);
  int start = keyStart(rows.s);
  int there = rows.there();
  int head = rows.keyHead();
  // Of a lane's two rows: the number, and the keys it sees.
  int index[2], first[2], seen[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = laneRow() + 8 * half;
    bool isRow = rows.has(row);
    int t = rows.past + row / UNIT;
    // `start >= 0` always holds. So queries are asked for behind all that is read
    // of the sequence; else the compiler waits for queries before it asks for keys.
    index[half] = isRow && start >= 0 ? rows.numberOf(row) : 0;
    first[half] = firstSeen(u, t);
    seen[half] = isRow ? Rows::seenEnd(t) - first[half] : 0;
  }
  // Before the keys are asked for: their queue is long.
  unsigned queries[STEPS][4];
  loadQueries<WIDTH, CONTENT_STEPS>(queries, u.q, index);
#if ROPE > 0
  loadQueries<ROPE, STEPS - CONTENT_STEPS>(queries + CONTENT_STEPS, u.qRope,
                                           index);
#endif

  int step = N * gridDim.x;
  int slot = rows.first + N * blockIdx.x + 16 * warp;
  // The next keys to ask for: slots of no keys have no place in the ring.
  int next = slot;
  auto fill = [&](int place) {
    int at = -1;
    while (next < rows.end && at < 0) {
      at = rows.keyAt(next);
      next += step;
    }
    if (at >= 0) ring.fill(given.maps, place, head, start + at);
  };
  if (lane == 0) {
#pragma unroll
    for (int n = 0; n < STAGES; n++) fill(n);
  }
  __syncwarp();

  float scale = u.scale * LOG2_E;
  Softmax softmax;
  int place = 0;
  unsigned parity = 0;
  for (; slot < rows.end; slot += step) {
    int at = rows.keyAt(slot);
    if (at < 0) continue;
    await(&ring.full[place], parity);
    T *keys = ring.tiles + place * PLACE;
    T *values = keys + VALUES_AT;
    if (at + 16 > there) clearValues(values, there - at);
    float scores[1][2][4];
    multiplyKeys(scores[0], queries, keys);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int from = at + laneColumn() - first[half];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        bool isSeen = (unsigned)(from + e / 2 * 8 + e % 2) < (unsigned)seen[half];
        if (!isSeen) scores[0][e / 2][2 * half + e % 2] = -INFINITE;
      }
    }
    softmax.weigh(scores, scale);
    unsigned weights[4];
    operandOf(weights, scores[0], 0);
    addValues(softmax.sums[0], weights, values);
    __syncwarp();
    if (lane == 0) fill(place);
    __syncwarp();
    if (++place == STAGES) {
      place = 0;
      parity ^= 1;
    }
  }

  float *part = (float *)ring.tiles;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = laneRow() + 8 * half;
    float total = softmax.total[0][half];
    total += __shfl_xor_sync(0xffffffff, total, 1);
    total += __shfl_xor_sync(0xffffffff, total, 2);
    if (laneColumn() == 0) {
      known[warp][row] = make_float2(softmax.most[0][half], total);
    }
#pragma unroll
    for (int n = 0; n < VALUE / 8; n++) {
      *(float2 *)(part + row * PITCH + 8 * n + laneColumn()) = make_float2(
          softmax.sums[0][n][2 * half], softmax.sums[0][n][2 * half + 1]);
    }
  }
  __syncthreads();

  Results results = {rows, given.o, given.lse};
  constexpr int LANES = THREADS / 16;
  int row = threadIdx.x / LANES;
  auto warps = join<WARPS>([&](int w) { return known[w][row]; });
  float factor = CLUSTER > 1 ? 1 : inverseOf(warps.total);
  for (int c = threadIdx.x % LANES * 4; c < VALUE; c += 4 * LANES) {
    float *at = (float *)tiles + row * PITCH + c;
    float4 sum = warps.sum([&](int w) {
      return *(const float4 *)(at + w * (STAGES * PLACE * (int)sizeof(T) / 4));
    });
    // The thread's own: no other one reads them until all of the cluster meet.
    if (CLUSTER > 1) *(float4 *)at = sum;
    else results.put(row, c, sum, factor);
  }
  if (CLUSTER == 1) {
    if (threadIdx.x % LANES == 0) results.close(row, warps.top, warps.total);
    return;
  }
#if CLUSTER > 1
  __shared__ float2 totals[16];
  if (threadIdx.x % LANES == 0) {
    totals[row] = make_float2(warps.top, warps.total);
  }
  meetCluster();
  // Each block of threads has some of the rows.
  constexpr int OWN = 16 / CLUSTER;
  constexpr int COLUMNS = THREADS / OWN;
  row = blockIdx.x % CLUSTER * OWN + threadIdx.x / COLUMNS;
  auto blocks = join<CLUSTER>(
      [&](int n) { return loadOfBlock(&totals[row], n); });
  factor = inverseOf(blocks.total);
  for (int c = threadIdx.x % COLUMNS * 4; c < VALUE; c += 4 * COLUMNS) {
    const float4 *at = (const float4 *)((float *)tiles + row * PITCH + c);
    results.put(row, c, blocks.sum([&](int n) { return loadOfBlock(at, n); }),
                factor);
  }
  if (threadIdx.x % COLUMNS == 0) results.close(row, blocks.top, blocks.total);
  // None leaves while others read its memory.
  meetCluster();
#endif
}
