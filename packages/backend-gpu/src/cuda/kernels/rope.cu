#include "pieces.cuh"

/** Heads that share a thread's angles; as in rope.ts. */
#define HEADS 4

/**
 * Sine and cosine of position frequency. The angle is taken in double until its
 * whole turns are off: a float has no digits left for it far into a long
 * context.
 */
__device__ inline void turn(int position, float frequency, float *sine,
                            float *cosine) {
  double turns = (double)position * frequency * 0.15915494309189535;
  sincospif((float)(2 * (turns - rint(turns))), sine, cosine);
}

/** A tensor, the numbers that turn it, and where it goes. */
struct Part {
  const T *x;
  const int *positions;
  const float *frequencies;
  T *y;
  // Threads that have work.
  i64 count;
  int heads, pairs;
  // Its first block of threads.
  i64 start;
};
struct Parts {
  Part list[MOST];
};

/**
 * [y1]   [cos -sin] [x1]
 * [y2] = [sin  cos] [x2], angle = position frequency
 *
 * The same bits in both kernels.
 */
__device__ inline void turnPair(float &x1, float &x2, float sine, float cosine) {
  float turned = fmaf(x1, sine, x2 * cosine);
  x1 = fmaf(x1, cosine, -(x2 * sine));
  x2 = turned;
}

/**
 * A thread a pair. Pair i of a row is the channels (i, i + pairs) where the step
 * is 1, and (2 i, 2 i + 1) where it is 2.
 */
extern "C" __global__ void rope(Parts parts, int step, float direction,
                                int count) {
  Part part = parts.list[partOf(parts, count)];
  i64 i = indexIn(part);
  if (i >= part.count) return;
  int pair = i % part.pairs;
  i64 row = i / part.pairs;
  float sine, cosine;
  turn(part.positions[row / part.heads], part.frequencies[pair], &sine,
       &cosine);
  sine *= direction;
  i64 first = row * 2 * part.pairs + pair * step;
  i64 second = first + (step == 1 ? part.pairs : 1);
  float x1 = widen(part.x[first]);
  float x2 = widen(part.x[second]);
  turnPair(x1, x2, sine, cosine);
  part.y[first] = narrow<T>(x1);
  part.y[second] = narrow<T>(x2);
}

/**
 * The same for whole pieces of pairs: a thread turns eight pairs of a token in
 * some of its heads. Those are neighbours, or half a row apart.
 */
extern "C" __global__ void ropePieces(Parts parts, int step, float direction,
                                      int count) {
  Part part = parts.list[partOf(parts, count)];
  i64 i = indexIn(part);
  if (i >= part.count) return;
  int turns = part.pairs / PIECE;
  int groups = (part.heads + HEADS - 1) / HEADS;
  int pair = (unsigned)i % turns * PIECE;
  int group = (unsigned)i / turns % groups;
  i64 token = (unsigned)i / (turns * groups);
  float sine[PIECE], cosine[PIECE];
#pragma unroll
  for (int n = 0; n < PIECE; n++) {
    turn(part.positions[token], part.frequencies[pair + n], &sine[n],
         &cosine[n]);
    sine[n] *= direction;
  }
  int first = pair * step;
  int second = step == 1 ? first + part.pairs : first + PIECE;
#pragma unroll
  for (int n = 0; n < HEADS; n++) {
    int head = group + n * groups;
    if (head >= part.heads) break;
    i64 row = (token * part.heads + head) * 2 * part.pairs;
    float a[PIECE], b[PIECE];
    loadWhole<T>(a, part.x + row + first);
    loadWhole<T>(b, part.x + row + second);
#pragma unroll
    for (int e = 0; e < PIECE; e++) {
      // The pair's two numbers, wherever they were loaded to.
      float &x1 = step == 1 ? a[e] : e < 4 ? a[2 * e] : b[2 * e - 8];
      float &x2 = step == 1 ? b[e] : e < 4 ? a[2 * e + 1] : b[2 * e - 7];
      turnPair(x1, x2, sine[e], cosine[e]);
    }
    storeWhole<T>(part.y + row + first, a);
    storeWhole<T>(part.y + row + second, b);
  }
}
