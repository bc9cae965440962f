// Importance of blocks, of any type and width. A block of threads has one leader
// and group: the probabilities of compressed attention, summed over the group's
// heads, from the scores and the known LSE, in shared memory where they fit, else
// in scratch memory of the grid; then the importance of each selection block.
#include "ranks.cuh"
#include "tile.cuh"

#define THREADS 128
/** Compressed keys, and heads, of a tile of scores. */
#define KEYS 64
#define HEADS 16

struct Ranking {
  const T *q, *k, *qRope, *kRope;
  const float *lse;
  const Sequence *sequences;
  // `[grid, room]`; missing where shared memory holds them.
  float *scratch;
  // H, GK, and the heads that share keys and a group.
  int heads, keyHeads, unitHeads;
  int width, ropeWidth, aligned;
  float scale;
  int length, stride, blockSize, sharing;
  // Compressed blocks that there is memory for.
  int room;
};

/** p[b] = sum over the group's heads of exp(q . k_b scale - lse), b < blocks */
__device__ inline void probabilities(const Ranking &u, const Sequence &s, int t,
                              int share, int blocks, int4 *memory, float *p) {
  __shared__ int rows[HEADS];
  __shared__ int keyRows[KEYS];
  int columns = (u.width + u.ropeWidth + 15) / 16 * 16;
  int pitch = columns + PAD;
  T *tileQ = (T *)memory;
  T *tileK = tileQ + HEADS * pitch;
  int query = s.queryStart + t - (s.keyCount - s.queryCount);
  int step = min(u.unitHeads, HEADS);
  for (int b0 = 0; b0 < blocks; b0 += KEYS) {
    for (int h0 = 0; h0 < share; h0 += step) {
      int head0 = blockIdx.y * share + h0;
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
__device__ inline void importances(const Ranking &u, int own, int blocks,
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
}

extern "C" __global__ void __launch_bounds__(THREADS)
    blockImportance(Ranking u, float *importance, Ranks ranks, int done) {
  extern __shared__ int4 memory[];
  Sequence s = u.sequences[blockIdx.z];
  int past = s.keyCount - s.queryCount;
  int number = ranks.first + done + blockIdx.x;
  int t = (past / u.sharing + number) * u.sharing;
  // The sequence has no such leader, or it is not here.
  if (t >= s.keyCount || s.queryCount == 0 || t < past) return;
  int pitch = (u.width + u.ropeWidth + 15) / 16 * 16 + PAD;
  float *p = (float *)((T *)memory + (HEADS + KEYS) * pitch);
  if (u.scratch) {
    i64 block = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    p = u.scratch + block * u.room;
  }
  int blocks = blocksOf(t + 1, u.length, u.stride);
  int share = u.heads / ranks.groups;
  probabilities(u, s, t, share, blocks, memory, p);
  i64 row = ranks.rowOf(s, number) * ranks.groups + blockIdx.y;
  importances(u, t / u.blockSize + 1, blocks, p, importance + row * ranks.places);
}
