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

/**
 * How many items each chunk has, and lists with parts; of each list minus the
 * parts that it waits for. Rows of lists that have no block get their results
 * here.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    countItems(const int *indices, const Sequence *sequences, int *itemCounts,
               int *listCounts, int *missing, T *o, float *lse, Cut cut,
               int sharing, int lists, int count, int blocks, int unitHeads,
               int valueWidth) {
  extern __shared__ int counts[];
  Lists all = listsOf(indices, sequences, cut, sharing, lists, count, blocks);
  countLists(counts, all);
  int items = 0;
  for (int b = threadIdx.x; b < blocks; b += THREADS) {
    items += (counts[b] + ITEM - 1) / ITEM;
  }
  items = blockSum(items);
  int having = 0;
  for (int i = threadIdx.x; i < all.chunk.count; i += THREADS) {
    int parts = 0;
    for (int n = 0; n < count; n++) parts += all.blockAt(i, n) >= 0;
    missing[blockIdx.x * (i64)cut.most + i] = -parts;
    if (parts > 0) {
      having++;
      continue;
    }
    int heads = cut.units * unitHeads;
    ListRows rows = ListRows::of(all.s, all.chunk.first + i, sharing, unitHeads);
    for (int rho = 0; rho < rows.count; rho++) {
      i64 row = (i64)(rows.firstQuery + rho / unitHeads) * heads +
                all.chunk.unit * unitHeads + rho % unitHeads;
      lse[row] = -INFINITE;
      for (int c = 0; c < valueWidth; c++) o[row * valueWidth + c] = T();
    }
  }
  having = blockSum(having);
  if (threadIdx.x > 0) return;
  itemCounts[blockIdx.x] = items;
  listCounts[blockIdx.x] = having;
}

/**
 * Where each chunk's items lie among those of all. Of each turn minus the shares
 * of its lists that are to be joined, SHARES a list. One block of threads.
 */
extern "C" __global__ void placeItems(const int *itemCounts,
                                      const int *listCounts, Turn *turns,
                                      int *unjoined, Progress *progress,
                                      int chunks) {
  __shared__ int3 counts[32];
  int3 done = make_int3(0, 0, 0);
  for (int base = 0; base < chunks; base += blockDim.x) {
    int chunk = base + threadIdx.x;
    int count = chunk < chunks ? itemCounts[chunk] : 0;
    int3 total = make_int3(0, 0, 0);
    int3 before = sumsBefore(make_int3(count, count > 0, 0), total, counts);
    if (count > 0) {
      int turn = done.y + before.y;
      turns[chunk] = {done.x + before.x, turn};
      unjoined[turn] = -listCounts[chunk] * SHARES;
    }
    done = make_int3(done.x + total.x, done.y + total.y, 0);
  }
  if (threadIdx.x == 0) *progress = {0, done.x};
}

/**
 * A chunk's items, and the entries that they count, (leader, place). Items
 * begin with the blocks around the queries, which all lists have: then it is not
 * at its end that all lists are to be joined.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    listItems(const int *indices, const Sequence *sequences,
              const Turn *turns, Item *items, unsigned *entries, Cut cut,
              int sharing, int lists, int count, int blocks) {
  extern __shared__ int counts[];
  __shared__ int3 sums[THREADS / 32];
  Lists all = listsOf(indices, sequences, cut, sharing, lists, count, blocks);
  countLists(counts, all);
  int past = all.s.keyCount - all.s.queryCount;
  int own = (past / sharing + all.chunk.first) * sharing / BLOCK;
  int firstBlock = max(0, own - 1);
  Turn turn = turns[blockIdx.x];
  Item *to = items + turn.firstItem;
  int3 done = make_int3(0, 0, 0);
  for (int base = 0; base < blocks; base += THREADS) {
    int place = base + threadIdx.x;
    int block = (firstBlock + place) % blocks;
    int having = place < blocks ? counts[block] : 0;
    int parts = (having + ITEM - 1) / ITEM;
    int3 total = make_int3(0, 0, 0);
    int3 before = sumsBefore(make_int3(having, parts, 0), total, sums);
    int first = done.x + before.x;
    for (int n = 0; n < parts; n++) {
      // Of one size, or nearly.
      int from = having * n / parts;
      int end = having * (n + 1) / parts;
      to[done.y + before.y + n] = {(int)blockIdx.x, turn.number, first + from,
                                        (unsigned)block, (unsigned)(end - from)};
    }
    if (place < blocks) counts[block] = first;
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
