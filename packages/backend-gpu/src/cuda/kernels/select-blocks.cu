// Importance and choice of blocks. A block of threads has one leader and group:
// the probabilities of compressed attention, summed over the group's heads,
// from the scores and the known LSE; then the importance of each selection
// block; then the list. Both rows of numbers lie in shared memory where they
// fit, else in scratch memory of the grid.
#include "tile.cuh"

#define THREADS 128
/** Compressed keys, and heads, of a tile of scores. */
#define KEYS 64
#define HEADS 16

struct Ranking {
  const T *q, *k, *qRope, *kRope;
  const float *lse;
  const Sequence *sequences;
  // `[grid, room + places]`; missing where shared memory holds them.
  float *scratch;
  // H, GK, and the heads that share keys and a group.
  int heads, keyHeads, unitHeads, groups;
  int width, ropeWidth, aligned;
  float scale;
  int length, stride, blockSize, sharing;
  // Compressed blocks and selection blocks that there is memory for.
  int room, places;
  // The leader of the grid's first block.
  int firstLeader;
};

struct Leader {
  Sequence s;
  // Position, row of its list, whether its query is here, blocks up to its own.
  int t, row, own;
  bool isHere;
};

/** p[b] = sum over the group's heads of exp(q . k_b scale - lse), b < blocks */
__device__ void probabilities(const Ranking &u, const Leader &leader, int group,
                              int blocks, int4 *memory, float *p) {
  __shared__ int rows[HEADS];
  __shared__ int keyRows[KEYS];
  int columns = (u.width + u.ropeWidth + 15) / 16 * 16;
  int pitch = columns + PAD;
  T *tileQ = (T *)memory;
  T *tileK = tileQ + HEADS * pitch;
  const Sequence &s = leader.s;
  int query = s.queryStart + leader.t - (s.keyCount - s.queryCount);
  int share = u.heads / u.groups;
  int step = min(u.unitHeads, HEADS);
  for (int b0 = 0; b0 < blocks; b0 += KEYS) {
    for (int h0 = 0; h0 < share; h0 += step) {
      int head0 = group * share + h0;
      int keyHead = head0 / (u.heads / u.keyHeads);
      // A unit of more heads than a tile has comes in parts.
      step = min(min(u.unitHeads, HEADS), u.unitHeads - h0 % u.unitHeads);
      __syncthreads();
      if (threadIdx.x < HEADS) {
        int head = head0 + threadIdx.x;
        rows[threadIdx.x] = threadIdx.x < step ? query * u.heads + head : -1;
      }
      if (threadIdx.x < KEYS) {
        int b = b0 + threadIdx.x;
        keyRows[threadIdx.x] = b < blocks ? s.blockStart + b : -1;
      }
      __syncthreads();
      loadTile(tileQ, pitch, HEADS, columns, rows, {u.q, u.width, u.width},
               {u.qRope, u.ropeWidth, u.ropeWidth}, u.aligned);
      loadTile(tileK, pitch, KEYS, columns, keyRows,
               {u.k + (i64)keyHead * u.width, (i64)u.keyHeads * u.width, u.width},
               {u.kRope, u.ropeWidth, u.ropeWidth}, u.aligned);
      __syncthreads();
      float scores[2][4];
      clear(scores);
      int warpKey = threadIdx.x / 32 * 16;
      productByRows<16>(scores, tileQ, pitch, tileK + warpKey * pitch, pitch,
                        columns);
#pragma unroll
      for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float sum = 0;
#pragma unroll
          for (int half = 0; half < 2; half++) {
            int row = rows[laneRow() + 8 * half];
            if (row < 0) continue;
            sum += expf(scores[n][2 * half + e] * u.scale - u.lse[row]);
          }
          for (int reach = 4; reach < 32; reach *= 2) {
            sum += __shfl_xor_sync(0xffffffff, sum, reach);
          }
          int b = b0 + warpKey + 8 * n + laneColumn() + e;
          if (laneRow() == 0 && b < blocks) p[b] = h0 == 0 ? sum : p[b] + sum;
        }
      }
    }
  }
  __syncthreads();
}

/** P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k], j < own */
__device__ void importances(const Ranking &u, int own, int blocks,
                            const float *p, float *P) {
  int m = u.blockSize / u.stride;
  int k = u.length / u.stride;
  for (int j = threadIdx.x; j < own; j += THREADS) {
    float sum = 0;
    for (int offset = 1 - k; offset < m; offset++) {
      int b = j * m + offset;
      if (b < 0 || b >= blocks) continue;
      // Pairs (m, k) with this difference.
      int pairs = min(m - 1, offset + k - 1) - max(0, offset) + 1;
      sum += pairs * p[b];
    }
    P[j] = sum;
  }
  __syncthreads();
}

/** False where the sequence has no such leader. */
__device__ bool openLeader(const Ranking &u, Leader &leader) {
  Sequence s = u.sequences[blockIdx.z];
  int past = s.keyCount - s.queryCount;
  int number = u.firstLeader + blockIdx.x;
  int t = (past / u.sharing + number) * u.sharing;
  if (t >= s.keyCount || s.queryCount == 0) return false;
  leader = {s, t, s.leaderStart + number, t / u.blockSize + 1, t >= past};
  return true;
}

/** The importance of the leader's blocks `0 .. own`. */
__device__ const float *rank(const Ranking &u, const Leader &leader) {
  extern __shared__ int4 memory[];
  int pitch = (u.width + u.ropeWidth + 15) / 16 * 16 + PAD;
  float *p = (float *)((T *)memory + (HEADS + KEYS) * pitch);
  if (u.scratch) {
    i64 block = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    p = u.scratch + block * (u.room + u.places);
  }
  float *P = p + u.room;
  int blocks = blocksOf(leader.t + 1, u.length, u.stride);
  probabilities(u, leader, blockIdx.y, blocks, memory, p);
  importances(u, leader.own, blocks, p, P);
  return P;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    blockImportance(Ranking u, float *importance, int blocks) {
  Leader leader;
  if (!openLeader(u, leader) || !leader.isHere) return;
  const float *P = rank(u, leader);
  importance += ((i64)leader.row * u.groups + blockIdx.y) * blocks;
  for (int j = threadIdx.x; j < leader.own; j += THREADS) importance[j] = P[j];
}

struct Choice {
  int count, initial, local;
};

__device__ bool isForced(const Choice &choice, int j, int own) {
  return j < choice.initial || j + choice.local >= own;
}

/** Bits of what is not negative have the order of the numbers. */
__device__ unsigned rankBits(const float *P, int j) {
  return __float_as_uint(P[j]) & 0x7fffffff;
}

/**
 * The importance that the last chosen block has, found bit by bit: the largest
 * number that `wanted` of the blocks that are not forced reach.
 */
__device__ unsigned leastChosen(const Choice &choice, const float *P, int own,
                                int wanted) {
  unsigned least = 0;
  for (int bit = 30; bit >= 0; bit--) {
    unsigned candidate = least | 1u << bit;
    int reached = 0;
    for (int j = threadIdx.x; j < own; j += THREADS) {
      if (!isForced(choice, j, own)) reached += rankBits(P, j) >= candidate;
    }
    if (blockSum(reached) >= wanted) least = candidate;
  }
  return least;
}

/** The sum of the values of the threads before this one. */
__device__ int sumBefore(int x) {
  __shared__ int values[THREADS];
  __syncthreads();
  values[threadIdx.x] = x;
  __syncthreads();
  int sum = 0;
  for (int n = 0; n < threadIdx.x; n++) sum += values[n];
  return sum;
}

/** F, then the best others by (P descending, j ascending); ascending */
extern "C" __global__ void __launch_bounds__(THREADS)
    selectBlocks(Ranking u, const int *previous, int *indices, Choice choice) {
  Leader leader;
  if (!openLeader(u, leader)) return;
  int *list = indices + ((i64)leader.row * u.groups + blockIdx.y) * choice.count;
  if (!leader.isHere) {
    const int *known = previous + (blockIdx.z * u.groups + blockIdx.y) * choice.count;
    for (int n = threadIdx.x; n < choice.count; n += THREADS) list[n] = known[n];
    return;
  }
  const float *P = rank(u, leader);
  int own = leader.own;
  int initial = min(choice.initial, own);
  int wanted = choice.count - min(own, initial + min(choice.local, own));
  int others = own - min(own, initial + min(choice.local, own));
  unsigned least = others > wanted ? leastChosen(choice, P, own, wanted) : 0;

  // Each thread has a run of blocks, so that places follow from counts.
  int run = (own + THREADS - 1) / THREADS;
  int start = min((int)threadIdx.x * run, own);
  int stop = min(start + run, own);
  int above = 0;
  int equal = 0;
  for (int j = start; j < stop; j++) {
    if (isForced(choice, j, own)) continue;
    above += rankBits(P, j) > least;
    equal += rankBits(P, j) == least;
  }
  // Of those that equal the least, the first ones.
  int room = wanted - min(wanted, blockSum(above));
  int equalBefore = sumBefore(equal);
  auto isChosen = [&](int j, int &seen) {
    if (isForced(choice, j, own)) return true;
    unsigned bits = rankBits(P, j);
    return bits == least ? seen++ < room : bits > least;
  };
  int taken = 0;
  int seen = equalBefore;
  for (int j = start; j < stop; j++) taken += isChosen(j, seen);
  int place = sumBefore(taken);
  seen = equalBefore;
  for (int j = start; j < stop; j++) {
    if (isChosen(j, seen)) list[place++] = j;
  }
}
