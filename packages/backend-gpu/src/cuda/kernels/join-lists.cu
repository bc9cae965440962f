// The results of lists from their parts, added in each list's order.
#include "parts.cuh"

/** The results of a list from its parts; its warps share out the columns. */
__device__ inline void joinList(const Call &u, const Sequence &s,
                                const ListRows &rows, const int *list, int unit,
                                const uint4 *parts, const float *partLse, T *o,
                                float *lse) {
  constexpr int AT_ONCE = 8;
  bool isOwn = OWN && hasOwnBlock(list, u.count, rows.position, SHARING);
  auto isPart = [&](int n) {
    int block = n < u.count ? list[n] : -1;
    return block >= 0 && (i64)block * BLOCK < s.keyCount &&
           !(isOwn && isOwnPlace(n, u.count) && n < u.count - 1);
  };
  auto lseOf = [&](int n, int half) {
    return partLse[16 * n + 8 * half + laneRow()];
  };
  float top[2] = {-INFINITE, -INFINITE};
  float total[2] = {0, 0};
  for (int first = 0; first < u.count; first += AT_ONCE) {
    float known[AT_ONCE][2];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      bool is = isPart(first + i);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        known[i][half] = is ? lseOf(first + i, half) : -INFINITE;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = top[half];
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) most = fmaxf(most, known[i][half]);
      float reference = most == -INFINITE ? 0 : most;
      total[half] *= exp2Fast(top[half] - reference);
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        total[half] += exp2Fast(known[i][half] - reference);
      }
      top[half] = most;
    }
  }
  float factor[2];
  int index[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int rho = laneRow() + 8 * half;
    factor[half] = total[half] == 0 ? 0 : __fdividef(1, total[half]);
    index[half] = rho < rows.count ? (rows.firstQuery + rho / UNIT) * u.heads +
                                         unit * UNIT + rho % UNIT
                                   : -1;
    if (threadIdx.x < 32 && laneColumn() == 0 && index[half] >= 0) {
      lse[index[half]] =
          total[half] == 0 ? -INFINITE
                           : (top[half] + log2f(total[half])) * (1 / LOG2_E);
    }
    // A list of no block: its weights are 2^-inf.
    if (top[half] == -INFINITE) top[half] = 0;
  }

  for (int n = threadIdx.x / 32; n < VALUES / 16; n += WARPS) {
    float sums[8] = {};
    for (int first = 0; first < u.count; first += AT_ONCE) {
      uint4 part[AT_ONCE];
      float weight[AT_ONCE][2];
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        bool is = isPart(first + i);
        const uint4 *at = parts + (first + i) * PART + n * 32 + threadIdx.x % 32;
        part[i] = is ? __ldcg(at) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          weight[i][half] = is ? lseOf(first + i, half) : -INFINITE;
        }
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        const T *x = (const T *)&part[i];
#pragma unroll
        for (int e = 0; e < 8; e++) {
          float w = exp2Fast(weight[i][e / 2 % 2] - top[e / 2 % 2]);
          sums[e] += w * widen(x[e]);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      int half = e / 2 % 2;
      int c = 16 * n + e / 4 * 8 + laneColumn();
      if (index[half] < 0 || c >= VALUE) continue;
      storePair(o + (i64)index[half] * VALUE + c, sums[e] * factor[half],
                sums[e + 1] * factor[half]);
    }
  }
}

/**
 * The results of a list of some chunks; a block of threads a list. The last
 * chunks come first: some of their parts are still in the L2 cache.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    joinLists(Call u, T *o, float *lse, Parts parts, Cut cut, int firstChunk) {
  int place = gridDim.y - 1 - blockIdx.y;
  Chunk chunk = Chunk::of(firstChunk + place, u.sequences, cut, SHARING);
  int leader = blockIdx.x;
  if (leader >= chunk.count) return;
  Sequence s = u.sequences[chunk.sequence];
  int number = chunk.first + leader;
  i64 part = ((i64)place * cut.most + leader) * u.count;
  joinList(u, s, ListRows::of(s, number, SHARING, UNIT),
           listOf(u, s, number, chunk.unit * UNIT), chunk.unit,
           parts.o + part * PART, parts.lse + part * 16, o, lse);
}
