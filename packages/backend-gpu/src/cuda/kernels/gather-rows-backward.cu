#include "pieces.cuh"

#define THREADS 128
/** Indices that a bit of `marks` stands for. */
#define STRETCH 1024

/**
 * Bit i / STRETCH of the words of a row r says whether one of those rows[i] is
 * r. Bits only ever rise, so the order of the threads does not matter.
 */
extern "C" __global__ void markRows(const int *rows, unsigned *marks, int count,
                                    int words) {
  i64 i = globalIndex();
  if (i >= count) return;
  int stretch = i / STRETCH;
  atomicOr(marks + (i64)rows[i] * words + stretch / 32, 1u << stretch % 32);
}

/**
 * dx[r] = sum of dy[i] over rows[i] = r, in the order of i. A block a row r
 * looks for its i where there are some, so that no two write one element.
 */
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    gatherRowsBackward(const T *dy, const int *rows, const unsigned *marks,
                       T *dx, int count, i64 width, int words) {
  __shared__ unsigned hits[THREADS / 32];
  int r = blockIdx.x;
  marks += (i64)r * words;
  // Columns past the threads take further rounds.
  for (i64 first = 0; first < width; first += THREADS * PIECE) {
    i64 c = first + threadIdx.x * PIECE;
    float sum[PIECE];
    clear(sum);
    for (int stretch = 0; stretch < 32 * words; stretch++) {
      if (!(marks[stretch / 32] >> stretch % 32 & 1)) continue;
      for (int part = 0; part < STRETCH; part += THREADS) {
        int base = stretch * STRETCH + part;
        int i = base + threadIdx.x;
        bool isHit = i < count && rows[i] == r;
        if (!__syncthreads_or(isHit)) continue;
        unsigned bits = __ballot_sync(0xffffffff, isHit);
        if (threadIdx.x % 32 == 0) hits[threadIdx.x / 32] = bits;
        __syncthreads();
        for (int word = 0; c < width && word < THREADS / 32; word++) {
          for (unsigned left = hits[word]; left; left &= left - 1) {
            i64 hit = base + 32 * word + __ffs(left) - 1;
            choose(width % PIECE == 0, [&](auto piece) {
              float x[PIECE];
              loadPiece(x, dy + hit * width, c, width, piece);
#pragma unroll
              for (int n = 0; n < PIECE; n++) sum[n] += x[n];
            });
          }
        }
      }
    }
    if (c >= width) continue;
    choose(width % PIECE == 0, [&](auto piece) {
      storePiece(dx + r * width, c, width, sum, piece);
    });
  }
}
