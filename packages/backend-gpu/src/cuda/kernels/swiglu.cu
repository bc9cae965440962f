#include "common.cuh"

/** y = gate sigmoid(gate) up; without up, gate sigmoid(gate) */
extern "C" __global__ void swiglu(const T *gate, const T *up, T *y, i64 count) {
  i64 i = globalIndex();
  if (i >= count) return;
  float x = widen(gate[i]);
  y[i] = narrow<T>(x * sigmoid(x) * (up ? widen(up[i]) : 1));
}

/** dGate = dy up s (1 + gate (1 - s)), dUp = dy gate s, s = sigmoid(gate) */
extern "C" __global__ void swigluBackward(const T *gate, const T *up,
                                          const T *dy, T *dGate, T *dUp,
                                          i64 count) {
  i64 i = globalIndex();
  if (i >= count) return;
  float x = widen(gate[i]);
  float d = widen(dy[i]);
  float s = sigmoid(x);
  float factor = up ? widen(up[i]) : 1;
  dGate[i] = narrow<T>(d * factor * s * (1 + x * (1 - s)));
  if (dUp) dUp[i] = narrow<T>(d * x * s);
}
