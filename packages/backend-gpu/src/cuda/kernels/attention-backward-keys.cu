// dV = sum over rows of p dO, dK = scale sum over rows of dS q: a block has a
// tile of keys and walks over the rows that see any of them, always in the
// same order. It sums the columns `C part ..` of both gradients.
#include "attention-tile.cuh"

/** Leaders that are looked through at a time: 32 words of the bitmap. */
#define ASKED 1024

extern "C" __global__ void __launch_bounds__(THREADS)
    attentionBackwardKeys(Call u, const T *dO, const float2 *statistics,
                          const unsigned *chosenBy, int words, int blocks,
                          T *dK, f32 *dKRope, T *dV, int parts) {
  extern __shared__ int4 memory[];
  __shared__ RowTable<N> rows;
  __shared__ float2 known[N];
  __shared__ KeyTable<ROWS> keyTable;
  __shared__ int chosen[VIEW == SELECTED ? ASKED : 1];
  __shared__ int chosenCount;
  int pitch = keyColumns(u) + PAD;
  int valuePitch = valueColumns(u) + PAD;
  int warp = threadIdx.x / 32;
  T *tileK = (T *)memory;
  T *tileV = tileK + ROWS * pitch;
  T *weightsP = tileV + ROWS * valuePitch + warp * 16 * (N + PAD);
  T *weightsS = weightsP + ROWS * (N + PAD);
  // Last: the products by columns may read past the columns that there are.
  T *tileQ = tileV + ROWS * valuePitch + 2 * ROWS * (N + PAD);
  T *tileO = tileQ + N * pitch;

  Sequence s = u.sequences[blockIdx.z];
  int keyHead = blockIdx.y;
  int part = blockIdx.x % parts;
  int tile = blockIdx.x / parts;
  bool hasK = part * C < u.width + u.ropeWidth;
  bool hasV = part * C < u.valueWidth;

  int firstKey = tile * ROWS;
  int endKey = min(firstKey + ROWS, keyCount(u, s));
  int block = 0;
  if (VIEW == SELECTED) {
    int tiles = (u.blockSize + ROWS - 1) / ROWS;
    block = tile / tiles;
    firstKey = block * u.blockSize + tile % tiles * ROWS;
    endKey = min(min(firstKey + ROWS, (block + 1) * u.blockSize), s.keyCount);
  }
  if (firstKey >= endKey) return;
  if (threadIdx.x < ROWS) {
    int at = firstKey + threadIdx.x;
    keyTable.set(s, threadIdx.x, at < endKey ? at : -1);
  }
  __syncthreads();
  loadTile(tileK, pitch, ROWS, keyColumns(u), keyTable.row, keys(u, keyHead),
           rotaryKeys(u), u.aligned);
  loadTile(tileV, valuePitch, ROWS, valueColumns(u), keyTable.row,
           values(u, keyHead, 0, u.valueWidth), none(), u.aligned);

  int key[2] = {warp * 16 + laneRow(), warp * 16 + laneRow() + 8};
  float sumsK[C / 8][4];
  float sumsV[C / 8][4];
  clear(sumsK);
  clear(sumsV);

  // Heads that share lists come one behind the other; elsewhere one unit is
  // all heads of the key.
  int units = u.heads / u.keyHeads / u.unitHeads;
  int leaders = VIEW == SELECTED ? (s.queryCount + u.sharing - 1) / u.sharing : 1;
  int firstAsked =
      VIEW == SELECTED ? block * u.blockSize / u.sharing / ASKED * ASKED : 0;
  for (int unit = 0; unit < units; unit++) {
    int head0 = (keyHead * units + unit) * u.unitHeads;
    for (int asked = firstAsked; asked < leaders; asked += ASKED) {
      int firstQuery = firstKey;
      int total;
      if (VIEW == SELECTED) {
        // The leaders of these that chose the block, side by side, in order.
        int list = head0 / (u.heads / u.lists);
        const unsigned *bits =
            chosenBy + (((i64)blockIdx.z * u.lists + list) * blocks + block) * words;
        __syncthreads();
        if (threadIdx.x < 32) {
          int word = asked / 32 + threadIdx.x;
          unsigned left = word < words ? bits[word] : 0;
          int count = __popc(left);
          int before = count;
          for (int reach = 1; reach < 32; reach *= 2) {
            int other = __shfl_up_sync(0xffffffff, before, reach);
            if ((int)threadIdx.x >= reach) before += other;
          }
          if (threadIdx.x == 31) chosenCount = before;
          for (before -= count; left; left &= left - 1) {
            chosen[before++] = 32 * word + __ffs(left) - 1;
          }
        }
        __syncthreads();
        total = chosenCount * u.sharing * u.unitHeads;
      } else {
        int endQuery = s.queryCount;
        if (VIEW == ATTENTION && u.window < s.queryCount - endKey + 1) {
          endQuery = endKey + u.window - 1;
        }
        if (VIEW == COMPRESSED) {
          firstQuery = min(firstKey * u.stride + u.length - 1, endQuery);
        }
        total = (endQuery - firstQuery) * u.unitHeads;
      }
      for (int rho0 = 0; rho0 < total; rho0 += N) {
        __syncthreads();
        if (threadIdx.x < N) {
          int rho = rho0 + threadIdx.x;
          bool isRow = rho < total;
          int query = firstQuery + rho / u.unitHeads;
          if (VIEW == SELECTED) {
            int rowsOfLeader = u.sharing * u.unitHeads;
            int leader = isRow ? chosen[rho / rowsOfLeader] : 0;
            query = leader * u.sharing + rho % rowsOfLeader / u.unitHeads;
            // The last leader may have fewer queries.
            isRow = isRow && query < s.queryCount;
          }
          rows.set(u, s, threadIdx.x, isRow, query, head0 + rho % u.unitHeads);
          known[threadIdx.x] =
              isRow ? statistics[rows.index[threadIdx.x]] : make_float2(0, 0);
        }
        __syncthreads();
        loadTile(tileQ, pitch, N, keyColumns(u), rows.index, queries(u),
                 rotaryQueries(u), u.aligned);
        loadTile(tileO, valuePitch, N, valueColumns(u), rows.index,
                 {dO, u.valueWidth, u.valueWidth}, none(), u.aligned);
        __syncthreads();
        float scores[N / 8][4];
        float dP[N / 8][4];
        clear(scores);
        clear(dP);
        productByRows<N>(scores, tileK + warp * 16 * pitch, pitch, tileQ, pitch,
                         keyColumns(u));
        if (hasK) {
          productByRows<N>(dP, tileV + warp * 16 * valuePitch, valuePitch, tileO,
                           valuePitch, valueColumns(u));
        }
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int row = 8 * n + laneColumn() + e % 2;
            float p = 0;
            if (sees(rows, row, keyTable, key[e / 2])) {
              p = probability(scores[n][e], u.scale, known[row]);
            }
            int to = (laneRow() + 8 * (e / 2)) * (N + PAD) + row;
            weightsP[to] = narrow<T>(p);
            float dS = p == 0 ? 0 : scoreGradient(p, dP[n][e], known[row]);
            weightsS[to] = narrow<T>(dS);
          }
        }
        __syncwarp();
        if (hasV) {
          productByColumns<C>(sumsV, weightsP, N + PAD, tileO + part * C,
                              valuePitch, N);
        }
        if (hasK) {
          productByColumns<C>(sumsK, weightsS, N + PAD, tileQ + part * C, pitch,
                              N);
        }
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = keyTable.row[key[half]];
    if (row < 0) continue;
    i64 at = (i64)row * u.keyHeads + keyHead;
#pragma unroll
    for (int n = 0; n < C / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int c = part * C + 8 * n + laneColumn() + e;
        float gradient = sumsK[n][2 * half + e] * u.scale;
        if (c < u.width) {
          dK[at * u.width + c] = narrow<T>(gradient);
        } else if (c < u.width + u.ropeWidth) {
          dKRope[at * u.ropeWidth + c - u.width] = gradient;
        }
        if (c < u.valueWidth) {
          dV[at * u.valueWidth + c] = narrow<T>(sumsV[n][2 * half + e]);
        }
      }
    }
  }
}
