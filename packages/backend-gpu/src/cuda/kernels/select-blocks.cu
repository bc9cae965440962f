// Importance of blocks, of any type and width. First the probabilities of
// compressed attention, summed over a group's heads, from the scores and the
// known LSE, in scratch memory: blocks of threads share out the keys of a leader
// and group, as in decoding there is but one leader. Then the importance of each
// selection block, a thread each.
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
  // `[S, leaders, groups, room]`
  float *probabilities;
  // H, GK, and the heads that share keys and a group.
  int heads, keyHeads, unitHeads;
  int width, ropeWidth, aligned;
  float scale;
  int length, stride, blockSize, sharing;
  // Compressed blocks that there is memory for.
  int room;
  // Leaders that there is memory for, and how many came before them.
  int leaders, done;
};

/** The leader of number `i` here, its position, and its group's memory. */
struct Leader {
  int number, t;
  float *p;
  bool isHere;

  __device__ Leader(const Ranking &u, const Sequence &s, const Ranks &ranks,
                    int i) {
    int past = s.keyCount - s.queryCount;
    number = ranks.first + u.done + i;
    t = (past / u.sharing + number) * u.sharing;
    i64 row = ((i64)blockIdx.z * u.leaders + i) * ranks.groups + blockIdx.y;
    p = u.probabilities + row * u.room;
    isHere = s.queryCount > 0 && t >= past && t < s.keyCount;
  }
};

/**
 * `loadTile` of rows that follow one another, `valid` of them. ALIGNED: every row's
 * width and start is a multiple of 16 bytes; then all are on their way at once.
 */
template <bool ALIGNED>
__device__ inline void copyRows(T *tile, int pitch, int count, int columns,
                                int valid, Columns left, Columns right) {
  const int step = ALIGNED ? PAD : 1;
  int perRow = columns / step;
  // Divided once: each piece is as far from the thread's last one.
  int i = threadIdx.x / perRow;
  int c = threadIdx.x % perRow * step;
  int down = THREADS / perRow;
  int across = THREADS % perRow * step;
#pragma unroll 4
  while (i < count) {
    bool isLeft = c < left.width;
    bool isThere = i < valid && c < left.width + right.width;
    // Within a tile 32 bits are enough.
    const T *from =
        isLeft ? left.base + (i * (int)left.stride + c)
               : right.base + (i * (int)right.stride + c - left.width);
    T *to = tile + i * pitch + c;
    if (ALIGNED) {
      cpAsync16(to, isThere ? from : left.base, isThere);
    } else {
      *to = isThere ? *from : narrow<T>(0);
    }
    i += down;
    c += across;
    if (c >= columns) {
      c -= columns;
      i++;
    }
  }
}

/** p[b] = sum over the group's heads of exp(q . k_b scale - lse) */
extern "C" __global__ void __launch_bounds__(THREADS)
    blockProbabilities(Ranking u, Ranks ranks, int splits) {
  extern __shared__ int4 memory[];
  Sequence s = u.sequences[blockIdx.z];
  Leader leader(u, s, ranks, blockIdx.x / splits);
  if (!leader.isHere) return;
  float *p = leader.p;
  int share = u.heads / ranks.groups;
  int blocks = blocksOf(leader.t + 1, u.length, u.stride);
  int columns = (u.width + u.ropeWidth + 15) / 16 * 16;
  int pitch = columns + PAD;
  T *tileQ = (T *)memory;
  T *tileK = tileQ + HEADS * pitch;
  i64 query = s.queryStart + leader.t - (s.keyCount - s.queryCount);
  int step = min(u.unitHeads, HEADS);
  int first = blockIdx.x % splits * KEYS;
  for (int b0 = first; b0 < blocks; b0 += splits * KEYS) {
    i64 keyRow = s.blockStart + b0;
    for (int h0 = 0; h0 < share; h0 += step) {
      int head0 = blockIdx.y * share + h0;
      int keyHead = head0 / (u.heads / u.keyHeads);
      // A unit of more heads than a tile has comes in parts.
      step = min(min(u.unitHeads, HEADS), u.unitHeads - h0 % u.unitHeads);
      i64 row = query * u.heads + head0;
      int keyPitch = u.keyHeads * u.width;
      Columns q = {u.q + row * u.width, u.width, u.width};
      Columns qRope = {u.qRope + row * u.ropeWidth, u.ropeWidth, u.ropeWidth};
      Columns k = {u.k + keyRow * keyPitch + keyHead * u.width, keyPitch, u.width};
      Columns kRope = {u.kRope + keyRow * u.ropeWidth, u.ropeWidth, u.ropeWidth};
      // Queries stay where the group's heads are one tile.
      int queries = b0 == first || step < share ? HEADS : 0;
      __syncthreads();
      if (u.aligned) {
        copyRows<true>(tileQ, pitch, queries, columns, step, q, qRope);
        copyRows<true>(tileK, pitch, KEYS, columns, blocks - b0, k, kRope);
      } else {
        copyRows<false>(tileQ, pitch, queries, columns, step, q, qRope);
        copyRows<false>(tileK, pitch, KEYS, columns, blocks - b0, k, kRope);
      }
      cpAsyncCommit();
      // A head that is not there has no weight.
      float lse[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int head = laneRow() + 8 * half;
        lse[half] = head < step ? u.lse[row + head] : INFINITE;
      }
      cpAsyncWait<0>();
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
            sum += expf(scores[n][2 * half + e] * u.scale - lse[half]);
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
}

/** P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k] */
extern "C" __global__ void __launch_bounds__(THREADS)
    blockImportance(Ranking u, Ranks ranks, int splits, float *importance) {
  Sequence s = u.sequences[blockIdx.z];
  Leader leader(u, s, ranks, blockIdx.x / splits);
  int j = blockIdx.x % splits * THREADS + threadIdx.x;
  if (!leader.isHere || j > leader.t / u.blockSize) return;
  int blocks = blocksOf(leader.t + 1, u.length, u.stride);
  int m = u.blockSize / u.stride;
  int k = u.length / u.stride;
  float sum = 0;
  for (int offset = 1 - k; offset < m; offset++) {
    int b = j * m + offset;
    if (b < 0 || b >= blocks) continue;
    sum += pairsAt(offset, m, k) * leader.p[b];
  }
  i64 row = ranks.rowOf(s, leader.number) * ranks.groups + blockIdx.y;
  importance[row * ranks.places + j] = sum;
}
