#include "common.cuh"

/**
 * [y1]   [cos -sin] [x1]
 * [y2] = [sin  cos] [x2], angle = position frequency
 *
 * Pair i of a row is the channels (i step, i step + apart). The angle is taken
 * in double until its whole turns are off: a float has no digits left for it
 * far into a long context.
 */
extern "C" __global__ void rope(const T *x, const int *positions,
                                const float *frequencies, T *y, i64 count,
                                int heads, int pairs, int step, int apart,
                                float direction) {
  i64 i = globalIndex();
  if (i >= count) return;
  int pair = i % pairs;
  i64 row = i / pairs;
  double turns = (double)positions[row / heads] * frequencies[pair] *
                 0.15915494309189535;
  float sine, cosine;
  sincospif((float)(2 * (turns - rint(turns))), &sine, &cosine);
  sine *= direction;
  i64 first = row * 2 * pairs + pair * step;
  float x1 = widen(x[first]);
  float x2 = widen(x[first + apart]);
  y[first] = narrow<T>(x1 * cosine - x2 * sine);
  y[first + apart] = narrow<T>(x1 * sine + x2 * cosine);
}
