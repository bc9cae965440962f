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

/**
 * [y1]   [cos -sin] [x1]
 * [y2] = [sin  cos] [x2], angle = position frequency
 *
 * Pair i of a row is the channels (i step, i step + apart).
 */
extern "C" __global__ void rope(const T *x, const int *positions,
                                const float *frequencies, T *y, i64 count,
                                int heads, int pairs, int step, int apart,
                                float direction) {
  i64 i = globalIndex();
  if (i >= count) return;
  int pair = i % pairs;
  i64 row = i / pairs;
  float sine, cosine;
  turn(positions[row / heads], frequencies[pair], &sine, &cosine);
  sine *= direction;
  i64 first = row * 2 * pairs + pair * step;
  float x1 = widen(x[first]);
  float x2 = widen(x[first + apart]);
  y[first] = narrow<T>(x1 * cosine - x2 * sine);
  y[first + apart] = narrow<T>(x1 * sine + x2 * cosine);
}

/**
 * The same for whole pieces of pairs: a thread turns eight pairs of a token in
 * some of its heads. Those are neighbours, or half a row apart.
 */
extern "C" __global__ void ropePieces(const T *x, const int *positions,
                                      const float *frequencies, T *y, i64 count,
                                      int heads, int pairs, int step,
                                      float direction) {
  i64 i = globalIndex();
  if (i >= count) return;
  int turns = pairs / PIECE;
  int parts = (heads + HEADS - 1) / HEADS;
  int pair = (unsigned)i % turns * PIECE;
  int part = (unsigned)i / turns % parts;
  i64 token = (unsigned)i / (turns * parts);
  float sine[PIECE], cosine[PIECE];
#pragma unroll
  for (int n = 0; n < PIECE; n++) {
    turn(positions[token], frequencies[pair + n], &sine[n], &cosine[n]);
    sine[n] *= direction;
  }
  int first = pair * step;
  int second = step == 1 ? first + pairs : first + PIECE;
#pragma unroll
  for (int n = 0; n < HEADS; n++) {
    int head = part + n * parts;
    if (head >= heads) break;
    i64 row = (token * heads + head) * 2 * pairs;
    float a[PIECE], b[PIECE];
    loadWhole<T>(a, x + row + first);
    loadWhole<T>(b, x + row + second);
#pragma unroll
    for (int e = 0; e < PIECE; e++) {
      // The pair's two numbers, wherever they were loaded to.
      float &x1 = step == 1 ? a[e] : e < 4 ? a[2 * e] : b[2 * e - 8];
      float &x2 = step == 1 ? b[e] : e < 4 ? a[2 * e + 1] : b[2 * e - 7];
      float turned = x1 * sine[e] + x2 * cosine[e];
      x1 = x1 * cosine[e] - x2 * sine[e];
      x2 = turned;
    }
    storeWhole<T>(y + row + first, a);
    storeWhole<T>(y + row + second, b);
  }
}
