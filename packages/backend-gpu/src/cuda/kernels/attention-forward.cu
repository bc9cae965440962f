// o = softmax(scores) v, online: maxima and sums are corrected as keys come.
// A block has one tile of rows and the columns `C part ..` of their results.
#include "attention-tile.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    attentionForward(Call u, Result *o, float *lse, int splits, int parts) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  __shared__ KeyTable<N> keyTable;
  int pitch = keyColumns(u) + PAD;
  T *tileQ = (T *)memory;
  T *tileK = tileQ + ROWS * pitch;
  T *tileV = tileK + N * pitch;
  T *weights = tileV + N * (C + PAD) + threadIdx.x / 32 * 16 * (N + PAD);

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * u.unitHeads;
  int keyHead = head0 / (u.heads / u.keyHeads);
  // In shared memory, as it is wanted again only at the end.
  __shared__ Split split;
  split = Split::of(splits);
  int part = blockIdx.x / split.count % parts;
  // The last rows walk furthest, so they start first.
  int tile = (gridDim.x - 1 - blockIdx.x) / (split.count * parts);
  Walk walk;
  if (!openRows(u, s, tile, head0, rows, walk)) return;
  if (!split.take(walk, rows, lse)) return;
  __syncthreads();
  loadTile(tileQ, pitch, ROWS, keyColumns(u), rows.index, queries(u),
           rotaryQueries(u), u.aligned);

  int warpRow = threadIdx.x / 32 * 16;
  int row[2] = {warpRow + laneRow(), warpRow + laneRow() + 8};
  float most[2] = {-INFINITE, -INFINITE};
  float total[2] = {0, 0};
  float sums[C / 8][4];
  clear(sums);
  for (int base = walk.first; base < walk.end; base += N) {
    int at = -1;
    if (threadIdx.x < N) {
      at = keyAt(u, s, walk, base + threadIdx.x);
      keyTable.set(s, threadIdx.x, at);
    }
    if (!__syncthreads_or(at >= 0)) continue;
    loadTile(tileK, pitch, N, keyColumns(u), keyTable.row, keys(u, keyHead),
             rotaryKeys(u), u.aligned);
    loadTile(tileV, C + PAD, N, C, keyTable.row, values(u, keyHead, part * C, C),
             none(), u.aligned);
    __syncthreads();
    float scores[N / 8][4];
    clear(scores);
    productByRows<N>(scores, tileQ + warpRow * pitch, pitch, tileK, pitch,
                     keyColumns(u));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = most[half];
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &score = scores[n][2 * half + e];
          score *= u.scale;
          if (sees(rows, row[half], keyTable, 8 * n + laneColumn() + e)) {
            top = fmaxf(top, score);
          }
        }
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
      // Equal where nothing was seen yet: both are -inf then.
      float fade = top == most[half] ? 1 : expf(most[half] - top);
      most[half] = top;
      total[half] *= fade;
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int key = 8 * n + laneColumn() + e;
          float p = 0;
          if (sees(rows, row[half], keyTable, key)) {
            p = expf(scores[n][2 * half + e] - top);
          }
          total[half] += p;
          weights[(laneRow() + 8 * half) * (N + PAD) + key] = narrow<T>(p);
        }
      }
#pragma unroll
      for (int n = 0; n < C / 8; n++) {
        sums[n][2 * half] *= fade;
        sums[n][2 * half + 1] *= fade;
      }
    }
    __syncwarp();
    productByColumns<C>(sums, weights, N + PAD, tileV, C + PAD, N);
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    float all = total[half];
    all += __shfl_xor_sync(0xffffffff, all, 1);
    all += __shfl_xor_sync(0xffffffff, all, 2);
    if (rows.index[row[half]] < 0) continue;
    i64 index = split.rowOf(rows.index[row[half]]);
    float inverse = all == 0 ? 0 : 1 / all;
    if (part == 0 && laneColumn() == 0) {
      lse[index] = all == 0 ? -INFINITE : most[half] + logf(all);
    }
#pragma unroll
    for (int n = 0; n < C / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int c = part * C + 8 * n + laneColumn() + e;
        if (c >= u.valueWidth) continue;
        o[index * u.valueWidth + c] = narrow<Result>(sums[n][2 * half + e] * inverse);
      }
    }
  }
}
