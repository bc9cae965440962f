// The inverse of the lists, a chunk of leaders at a time: for each block those
// lists that have it, cut into items of ITEM lists at most. A block of threads
// has a chunk. Items, then entries, are in an order that no result depends on.
#include "chunks.cuh"
#include "prefix.cuh"

#define THREADS 256

/** The lists of a chunk. */
struct Lists {
  const int *indices;
  Sequence s;
  Chunk chunk;
  int list, lists, count, blocks;

  __device__ const int *of(int leader) const {
    i64 row = s.leaderStart + chunk.first + leader;
    return indices + (row * lists + list) * count;
  }
  /** -1 where the list has none, or one of no keys. */
  __device__ int blockAt(int leader, int place) const {
    int block = of(leader)[place];
    bool isThere = block >= 0 && block < blocks && (i64)block * BLOCK < s.keyCount;
    return isThere ? block : -1;
  }
};

__device__ inline Lists listsOf(const int *indices, const Sequence *sequences,
                                const Cut &cut, int sharing, int lists, int count,
                                int blocks) {
  Chunk chunk = Chunk::of(blockIdx.x, sequences, cut, sharing);
  return {indices, sequences[chunk.sequence], chunk,
          chunk.unit * lists / cut.units, lists, count, blocks};
}

/** counts[block] = lists of the chunk that have it; all threads. */
__device__ inline void countLists(int *counts, const Lists &lists) {
  for (int b = threadIdx.x; b < lists.blocks; b += THREADS) counts[b] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < lists.chunk.count * lists.count; i += THREADS) {
    int block = lists.blockAt(i / lists.count, i % lists.count);
    if (block >= 0) atomicAdd(counts + block, 1);
  }
  __syncthreads();
}

/** How many items each chunk has. */
extern "C" __global__ void __launch_bounds__(THREADS)
    countItems(const int *indices, const Sequence *sequences, int *itemCounts,
               Cut cut, int sharing, int lists, int count, int blocks) {
  extern __shared__ int counts[];
  Lists all = listsOf(indices, sequences, cut, sharing, lists, count, blocks);
  countLists(counts, all);
  int items = 0;
  for (int b = threadIdx.x; b < blocks; b += THREADS) {
    items += (counts[b] + ITEM - 1) / ITEM;
  }
  items = blockSum(items);
  if (threadIdx.x == 0) itemCounts[blockIdx.x] = items;
}

/** Where each chunk's items begin, and behind them all end; one block of threads. */
extern "C" __global__ void placeItems(const int *itemCounts, int *firstItems,
                                      int chunks) {
  __shared__ int3 counts[32];
  int done = 0;
  for (int base = 0; base < chunks; base += blockDim.x) {
    int chunk = base + threadIdx.x;
    int count = chunk < chunks ? itemCounts[chunk] : 0;
    int3 total = make_int3(0, 0, 0);
    int3 before = sumsBefore(make_int3(count, 0, 0), total, counts);
    if (chunk < chunks) firstItems[chunk] = done + before.x;
    done += total.x;
  }
  if (threadIdx.x == 0) firstItems[chunks] = done;
}

/** A chunk's items, and the entries that they count, (leader, place). */
extern "C" __global__ void __launch_bounds__(THREADS)
    listItems(const int *indices, const Sequence *sequences,
              const int *firstItems, Item *items, unsigned *entries, Cut cut,
              int sharing, int lists, int count, int blocks) {
  extern __shared__ int counts[];
  __shared__ int3 sums[THREADS / 32];
  Lists all = listsOf(indices, sequences, cut, sharing, lists, count, blocks);
  countLists(counts, all);
  Item *to = items + firstItems[blockIdx.x];
  int3 done = make_int3(0, 0, 0);
  for (int base = 0; base < blocks; base += THREADS) {
    int block = base + threadIdx.x;
    int having = block < blocks ? counts[block] : 0;
    int parts = (having + ITEM - 1) / ITEM;
    int3 total = make_int3(0, 0, 0);
    int3 before = sumsBefore(make_int3(having, parts, 0), total, sums);
    int first = done.x + before.x;
    for (int n = 0; n < parts; n++) {
      // Of one size, or nearly.
      int from = having * n / parts;
      int end = having * (n + 1) / parts;
      to[done.y + before.y + n] = {(int)blockIdx.x, first + from,
                                        (unsigned)block, (unsigned)(end - from)};
    }
    if (block < blocks) counts[block] = first;
    done = make_int3(done.x + total.x, done.y + total.y, 0);
  }
  __syncthreads();
  unsigned *list = entries + (i64)blockIdx.x * cut.most * count;
  for (int i = threadIdx.x; i < all.chunk.count * count; i += THREADS) {
    int block = all.blockAt(i / count, i % count);
    if (block < 0) continue;
    list[atomicAdd(counts + block, 1)] = i / count << 16 | i % count;
  }
}
