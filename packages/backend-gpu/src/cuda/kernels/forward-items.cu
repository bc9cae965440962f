// The inverse of the lists, a chunk of leaders at a time: for each block those
// lists that have it, cut into items of ITEM lists at most; OWN: those of which it
// is the own one apart. A block of threads has a chunk. Items, then entries, are
// in an order that no result depends on.
#include "chunks.cuh"
#include "prefix.cuh"

#define THREADS 1024

/** The lists of a chunk. */
struct Lists {
  const int *list;
  int leaders, count, stride;
  // Blocks of keys that there are, and that there can be.
  int blocks, places;
  // The first leader's number from position 0 on, and queries of each.
  int firstLeader, sharing;

  /** Of a list's block the number among items' blocks, -1 for none. */
  __device__ int numberOf(int leader, int place, int block) const {
    if ((unsigned)block >= (unsigned)blocks) return -1;
    if (!OWN || !isOwnPlace(place, count)) return block;
    bool isOwn = hasOwnBlock(list + (i64)leader * stride, count,
                             (firstLeader + leader) * sharing, sharing);
    if (!isOwn) return block;
    return place == count - 1 ? places + block : -1;
  }

  /** `emit(entry, number)` for each, those of none left out; all threads. */
  template <typename Emit> __device__ void each(Emit emit) const {
    // Reads are far: many at a time.
    constexpr int AT_ONCE = 8;
    int leader = threadIdx.x / count;
    int place = threadIdx.x % count;
    int leaderStep = THREADS / count;
    int placeStep = THREADS % count;
    while (leader < leaders) {
      unsigned entry[AT_ONCE];
      int block[AT_ONCE];
#pragma unroll
      for (int n = 0; n < AT_ONCE; n++) {
        bool isThere = leader < leaders;
        block[n] = isThere ? list[(i64)leader * stride + place] : -1;
        entry[n] = (unsigned)leader << 16 | place;
        leader += leaderStep;
        place += placeStep;
        if (place >= count) {
          place -= count;
          leader++;
        }
      }
#pragma unroll
      for (int n = 0; n < AT_ONCE; n++) {
        int number = numberOf(entry[n] >> 16, entry[n] & 0xffff, block[n]);
        if (number >= 0) emit(entry[n], number);
      }
    }
  }
};

/** All items, and the entries that they count; `counts` is zeros before. */
extern "C" __global__ void __launch_bounds__(THREADS)
    listItems(const int *indices, const Sequence *sequences, Items all, Cut cut,
              int sharing, int lists, int count, int places) {
  extern __shared__ int having[];
  __shared__ int3 sums[THREADS / 32];
  __shared__ int start;
  Chunk chunk = Chunk::of(blockIdx.x, sequences, cut, sharing);
  Sequence s = sequences[chunk.sequence];
  i64 row = s.leaderStart + chunk.first;
  int list = chunk.unit * lists / cut.units;
  int past = s.keyCount - s.queryCount;
  Lists own = {indices + (row * lists + list) * count,
               chunk.count,
               count,
               lists * count,
               min(places, (s.keyCount + BLOCK - 1) / BLOCK),
               places,
               past / sharing + chunk.first,
               sharing};
  int numbers = OWN ? 2 * places : places;
  for (int b = threadIdx.x; b < numbers; b += THREADS) having[b] = 0;
  __syncthreads();
  own.each([&](unsigned, int block) { atomicAdd(having + block, 1); });
  __syncthreads();
  int items = 0;
  for (int b = threadIdx.x; b < numbers; b += THREADS) {
    items += (having[b] + ITEM - 1) / ITEM;
  }
  items = blockSum(items);
  int range = blockIdx.x / all.chunks;
  if (threadIdx.x == 0) start = atomicAdd(&all.counts[range].x, items);
  __syncthreads();
  Item *to = all.of(range) + start;
  int3 done = make_int3(0, 0, 0);
  for (int base = 0; base < numbers; base += THREADS) {
    int number = base + threadIdx.x;
    int lists = number < numbers ? having[number] : 0;
    bool isOwn = number >= places;
    int parts = (lists + ITEM - 1) / ITEM;
    int3 total = make_int3(0, 0, 0);
    int3 before = sumsBefore(make_int3(lists, parts, 0), total, sums);
    int first = done.x + before.x;
    for (int n = 0; n < parts; n++) {
      // Of one size, or nearly.
      int from = lists * n / parts;
      int end = lists * (n + 1) / parts;
      to[done.y + before.y + n] = {(int)blockIdx.x, first + from,
                                   (unsigned)(isOwn ? number - places : number),
                                   isOwn, (unsigned)(end - from)};
    }
    if (number < numbers) having[number] = first;
    done = make_int3(done.x + total.x, done.y + total.y, 0);
  }
  __syncthreads();
  unsigned *entries = all.entries + (i64)blockIdx.x * cut.most * count;
  own.each([&](unsigned entry, int block) {
    entries[atomicAdd(having + block, 1)] = entry;
  });
}
