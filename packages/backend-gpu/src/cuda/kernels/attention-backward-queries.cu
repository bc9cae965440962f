// dQ = scale sum over keys of dS k, dS = p (dO . v - dO . o). A block has one
// tile of rows and the columns `C part ..` of their gradients.
#include "attention-tile.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    attentionBackwardQueries(Call u, const T *dO, const float2 *statistics,
                             QueryGradients d, int parts) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<ROWS> rows;
  __shared__ KeyTable<N> keyTable;
  int pitch = keyColumns(u) + PAD;
  int valuePitch = valueColumns(u) + PAD;
  T *tileQ = (T *)memory;
  T *tileO = tileQ + ROWS * pitch;
  T *tileV = tileO + ROWS * valuePitch;
  T *weights = tileV + N * valuePitch + threadIdx.x / 32 * 16 * (N + PAD);
  // Last: the product by columns may read past the columns that there are.
  T *tileK = tileV + N * valuePitch + ROWS * (N + PAD);

  Sequence s = u.sequences[blockIdx.z];
  int head0 = blockIdx.y * u.unitHeads;
  int keyHead = head0 / (u.heads / u.keyHeads);
  int part = blockIdx.x % parts;
  int tile = gridDim.x / parts - 1 - blockIdx.x / parts;
  Walk walk;
  if (!openRows(u, s, tile, head0, rows, walk)) return;
  __syncthreads();
  loadTile(tileQ, pitch, ROWS, keyColumns(u), rows.index, queries(u),
           rotaryQueries(u), u.aligned);
  loadTile(tileO, valuePitch, ROWS, valueColumns(u), rows.index,
           {dO, u.valueWidth, u.valueWidth}, none(), u.aligned);

  int warpRow = threadIdx.x / 32 * 16;
  int row[2] = {warpRow + laneRow(), warpRow + laneRow() + 8};
  float2 known[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int index = rows.index[row[half]];
    known[half] = index < 0 ? make_float2(0, 0) : statistics[index];
  }
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
    loadTile(tileV, valuePitch, N, valueColumns(u), keyTable.row,
             values(u, keyHead, 0, u.valueWidth), none(), u.aligned);
    __syncthreads();
    float scores[N / 8][4];
    float dP[N / 8][4];
    clear(scores);
    clear(dP);
    productByRows<N>(scores, tileQ + warpRow * pitch, pitch, tileK, pitch,
                     keyColumns(u));
    productByRows<N>(dP, tileO + warpRow * valuePitch, valuePitch, tileV,
                     valuePitch, valueColumns(u));
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int half = e / 2;
        int key = 8 * n + laneColumn() + e % 2;
        float dS = 0;
        if (sees(rows, row[half], keyTable, key)) {
          float p = probability(scores[n][e], u.scale, known[half]);
          dS = scoreGradient(p, dP[n][e], known[half]);
        }
        weights[(laneRow() + 8 * half) * (N + PAD) + key] = narrow<T>(dS);
      }
    }
    __syncwarp();
    productByColumns<C>(sums, weights, N + PAD, tileK + part * C, pitch, N);
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    i64 index = rows.index[row[half]];
    if (index < 0) continue;
#pragma unroll
    for (int n = 0; n < C / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int c = part * C + 8 * n + laneColumn() + e;
        float value = sums[n][2 * half + e] * u.scale;
        if (c < u.width) {
          i64 at = index * u.width + c;
          if (PLUS) value += widen(d.plus[at]);
          d.q[at] = narrow<T>(value);
        } else if (c < u.width + u.ropeWidth) {
          d.qRope[index * u.ropeWidth + c - u.width] = narrow<T>(value);
        }
      }
    }
  }
}
