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

static inline float floatOfHalf(unsigned short x) {
  // Subnormal numbers become normal ones by the product.
  uint32_t bits = (uint32_t)(x & 0x7fff) << 13;
  float size = bitsAs<float>(bits) * 0x1p112f;
  if ((x & 0x7c00) == 0x7c00) size = bitsAs<float>(bits | 0x7f800000);
  return bitsAs<float>(bitsAs<uint32_t>(size) | (uint32_t)(x & 0x8000) << 16);
}

float asaFloatOfHalf(unsigned short x) { return floatOfHalf(x); }

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

static inline float floatOfBfloat(unsigned short x) {
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

void asaMmaHalf(void *const *all) { multiply<floatOfHalf>(all); }
void asaMmaBfloat(void *const *all) { multiply<floatOfBfloat>(all); }

static void load(void *const *all, bool isTransposed) {
  const uint16_t *rows[32];
  for (int lane = 0; lane < 32; lane++) {
    rows[lane] = (const uint16_t *)((const AsaLoad *)all[lane])->row;
    checkMatrixRow("ldmatrix", rows[lane]);
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

void asaStoreMatrices(void *const *all) {
  for (int lane = 0; lane < 32; lane++) {
    const AsaLoad &own = *(const AsaLoad *)all[lane];
    checkMatrixRow("stmatrix", own.row);
    for (int piece = 0; piece < 4; piece++) {
      const AsaLoad &from = *(const AsaLoad *)all[lane % 8 * 4 + piece];
      ((unsigned *)own.row)[piece] = from.r[lane / 8];
    }
  }
}

/** A matrix in shared memory in the layout of 128-byte swizzle. */
class Matrix {
public:
  explicit Matrix(unsigned long long place)
      : start((place & 0x3fff) << 4), leading((place >> 16 & 0x3fff) << 4),
        stride((place >> 32 & 0x3fff) << 4),
        isKnown(place >> 62 == 1 && (place >> 49 & 7) == 0 && (start >> 7 & 7) == 0) {}

  /** Eight neighbours: of row r from column 8 piece on. */
  const uint16_t *piece(unsigned row, unsigned piece, bool isTransposed) const {
    unsigned at = start + row / 8 * stride + row % 8 * 128 + piece * 16;
    // Transposed: 64 columns, then the next 64.
    if (isTransposed) at += piece / 8 * (leading - 128);
    at ^= (at >> 7 & 7) << 4;
    return (const uint16_t *)readableShared(isKnown ? at : 0, 16);
  }

private:
  unsigned start, leading, stride;
  bool isKnown;
};

template <float (*WIDEN)(unsigned short)>
__attribute__((always_inline))
static inline void multiplyRows(const AsaWgmma *const *lanes, unsigned warp) {
  static float a[16][16], b[16][256], d[16][256];
  const AsaWgmma &first = *lanes[0];
  int columns = first.columns;
  Matrix matrixA(first.placeA), matrixB(first.placeB);
  if (!first.a && first.isTransposedA) {
    for (int k = 0; k < 16; k++) {
      for (int piece = 0; piece < 2; piece++) {
        const uint16_t *from = matrixA.piece(k, 2 * warp + piece, true);
        for (int e = 0; e < 8; e++) a[8 * piece + e][k] = WIDEN(from[e]);
      }
    }
  } else if (!first.a) {
    for (int i = 0; i < 16; i++) {
      for (int piece = 0; piece < 2; piece++) {
        const uint16_t *from = matrixA.piece(16 * warp + i, piece, false);
        for (int e = 0; e < 8; e++) a[i][8 * piece + e] = WIDEN(from[e]);
      }
    }
  }
  if (first.isTransposed) {
    for (int k = 0; k < 16; k++) {
      for (int n = 0; n < columns; n += 8) {
        const uint16_t *from = matrixB.piece(k, n / 8, true);
        for (int e = 0; e < 8; e++) b[k][n + e] = WIDEN(from[e]);
      }
    }
  } else {
    for (int n = 0; n < columns; n++) {
      for (int piece = 0; piece < 2; piece++) {
        const uint16_t *from = matrixB.piece(n, piece, false);
        for (int e = 0; e < 8; e++) b[8 * piece + e][n] = WIDEN(from[e]);
      }
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    const AsaWgmma &own = *lanes[lane];
    int g = lane / 4, t = lane % 4 * 2;
    for (int e = 0; own.a && e < 8; e++) {
      unsigned short bits = own.a[e / 2] >> 16 * (e % 2) & 0xffff;
      a[g + e / 2 % 2 * 8][t + e / 4 * 8 + e % 2] = WIDEN(bits);
    }
    for (int n = 0; n < columns / 2; n++) {
      float &place = d[g + n / 2 % 2 * 8][n / 4 * 8 + t + n % 2];
      place = own.more ? own.d[n] : 0;
    }
  }
  for (int i = 0; i < 16; i++) {
    for (int k = 0; k < 16; k++) {
      for (int n = 0; n < columns; n++) d[i][n] += a[i][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4 * 2;
    for (int n = 0; n < columns / 2; n++) {
      lanes[lane]->d[n] = d[g + n / 2 % 2 * 8][n / 4 * 8 + t + n % 2];
    }
  }
}

/** Compiled for newer processors too; without fused sums all give the same. */
#ifdef __x86_64__
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

VECTORS void multiplyWarpgroup(const AsaWgmma *const *lanes, unsigned warp) {
  if (lanes[0]->isHalf) multiplyRows<floatOfHalf>(lanes, warp);
  else multiplyRows<floatOfBfloat>(lanes, warp);
}
