// Numbers of 16 bits, and what a warp does with matrices of them. Layouts are
// those that `ptx.cuh` describes.
#include "emulator.h"
#include <cstdint>
#include <cstring>

template <typename To, typename From> static To bitsAs(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

float asaFloatOfHalf(unsigned short x) {
  // Subnormal numbers become normal ones by the product.
  uint32_t bits = (uint32_t)(x & 0x7fff) << 13;
  float size = bitsAs<float>(bits) * 0x1p112f;
  if ((x & 0x7c00) == 0x7c00) size = bitsAs<float>(bits | 0x7f800000);
  return bitsAs<float>(bitsAs<uint32_t>(size) | (uint32_t)(x & 0x8000) << 16);
}

unsigned short asaHalfOfFloat(float x) {
  uint32_t bits = bitsAs<uint32_t>(x);
  uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return 0x7fff;
  // From the middle between 65504 and 65536 on.
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {
    // The last bit of a number near 1/2 is the least of a half.
    float shifted = bitsAs<float>(bits) + 0.5f;
    return sign | (bitsAs<uint32_t>(shifted) - bitsAs<uint32_t>(0.5f));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return sign | (bits - 0x38000000) >> 13;
}

unsigned short asaBfloatOfFloat(float x) {
  uint32_t bits = bitsAs<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static float floatOfBfloat(unsigned short x) {
  return bitsAs<float>((uint32_t)x << 16);
}

template <float (*WIDEN)(unsigned short)> static void multiply(void *const *all) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const AsaMma &own = *(const AsaMma *)all[lane];
    int g = lane / 4, t = lane % 4 * 2;
    for (int e = 0; e < 2; e++) {
      auto part = [e](unsigned word) { return WIDEN(word >> 16 * e & 0xffff); };
      a[g][t + e] = part(own.a[0]);
      a[g + 8][t + e] = part(own.a[1]);
      a[g][t + 8 + e] = part(own.a[2]);
      a[g + 8][t + 8 + e] = part(own.a[3]);
      b[t + e][g] = part(own.b0);
      b[t + 8 + e][g] = part(own.b1);
      d[g][t + e] = own.d[e];
      d[g + 8][t + e] = own.d[2 + e];
    }
  }
  for (int i = 0; i < 16; i++) {
    for (int k = 0; k < 16; k++) {
      for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    float *own = ((const AsaMma *)all[lane])->d;
    for (int e = 0; e < 4; e++) own[e] = d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
  }
}

void asaMmaHalf(void *const *all) { multiply<asaFloatOfHalf>(all); }
void asaMmaBfloat(void *const *all) { multiply<floatOfBfloat>(all); }

static void load(void *const *all, bool isTransposed) {
  const uint16_t *rows[32];
  for (int lane = 0; lane < 32; lane++) {
    rows[lane] = (const uint16_t *)((const AsaLoad *)all[lane])->row;
    checkMatrixRow(rows[lane]);
  }
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4 * 2;
    for (int j = 0; j < 4; j++) {
      const uint16_t *const *matrix = rows + 8 * j;
      unsigned low = isTransposed ? matrix[t][g] : matrix[g][t];
      unsigned high = isTransposed ? matrix[t + 1][g] : matrix[g][t + 1];
      ((const AsaLoad *)all[lane])->r[j] = low | high << 16;
    }
  }
}

void asaLoadMatrices(void *const *all) { load(all, false); }
void asaLoadMatricesTransposed(void *const *all) { load(all, true); }
