// libcublasLt as plain loops: sums in double, results rounded once.
#include "emulator.h"
#include <cstdint>
#include <cstring>

namespace {

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, MAPPING_ERROR = 11, NOT_SUPPORTED = 15 };
enum { F32 = 0, F16 = 2, BF16 = 14 };

struct Descriptor {
  int transposeA, transposeB;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
  int batches = 1;
  int64_t batchStride = 0;
};

/** An element of a matrix that lies by columns. */
double read(const void *memory, const Layout &u, int64_t batch, bool isTransposed,
            int64_t i, int64_t j) {
  int64_t at = batch * u.batchStride + (isTransposed ? j + i * u.leading : i + j * u.leading);
  if (u.type == F32) return ((const float *)memory)[at];
  uint16_t bits = ((const uint16_t *)memory)[at];
  if (u.type == F16) return asaFloatOfHalf(bits);
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

void write(void *memory, const Layout &u, int64_t batch, int64_t i, int64_t j, float value) {
  int64_t at = batch * u.batchStride + i + j * u.leading;
  if (u.type == F32) ((float *)memory)[at] = value;
  else ((uint16_t *)memory)[at] = u.type == F16 ? asaHalfOfFloat(value) : asaBfloatOfFloat(value);
}

struct Product {
  Descriptor descriptor;
  Layout a, b, c, d;
  const void *A, *B, *C;
  void *D;
  float alpha, beta;
};

void multiply(const Product &u) {
  bool ta = u.descriptor.transposeA, tb = u.descriptor.transposeB;
  int64_t inner = ta ? u.a.rows : u.a.columns;
  std::vector<double> column(inner);
  for (int64_t batch = 0; batch < u.d.batches; batch++) {
    for (int64_t j = 0; j < (int64_t)u.d.columns; j++) {
      for (int64_t k = 0; k < inner; k++) column[k] = read(u.B, u.b, batch, tb, k, j);
      for (int64_t i = 0; i < (int64_t)u.d.rows; i++) {
        double sum = 0;
        for (int64_t k = 0; k < inner; k++) sum += read(u.A, u.a, batch, ta, i, k) * column[k];
        float old = u.beta == 0 ? 0 : u.beta * read(u.C, u.c, batch, false, i, j);
        write(u.D, u.d, batch, i, j, (float)(u.alpha * sum) + old);
      }
    }
  }
}

bool fits(const Product &u) {
  bool ta = u.descriptor.transposeA, tb = u.descriptor.transposeB;
  uint64_t rows = ta ? u.a.columns : u.a.rows, inner = ta ? u.a.rows : u.a.columns;
  uint64_t depth = tb ? u.b.columns : u.b.rows, columns = tb ? u.b.rows : u.b.columns;
  return rows == u.d.rows && columns == u.d.columns && inner == depth &&
         u.c.rows == rows && u.c.columns == columns;
}

} // namespace

extern "C" {

/** A handle is the number of its device, from 1. */
int cublasLtCreate(uint64_t *handle) {
  *handle = asaCurrentDevice() + 1;
  return *handle ? SUCCESS : NOT_INITIALIZED;
}
int cublasLtDestroy(void *) { return SUCCESS; }

int cublasLtMatmulDescCreate(Descriptor **out, int, int) {
  *out = new Descriptor{0, 0};
  return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Descriptor *u, int attribute, const int *value, size_t) {
  if (attribute == 3) u->transposeA = *value;
  else if (attribute == 4) u->transposeB = *value;
  else return NOT_SUPPORTED;
  return SUCCESS;
}
int cublasLtMatmulDescDestroy(Descriptor *u) { return delete u, SUCCESS; }

int cublasLtMatrixLayoutCreate(Layout **out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (type != F32 && type != F16 && type != BF16) return NOT_SUPPORTED;
  if (leading < (int64_t)rows) return INVALID_VALUE;
  *out = new Layout{type, rows, columns, leading};
  return SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(Layout *u, int attribute, const void *value, size_t) {
  if (attribute == 5) memcpy(&u->batches, value, 4);
  else if (attribute == 6) memcpy(&u->batchStride, value, 8);
  else return NOT_SUPPORTED;
  return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout *u) { return delete u, SUCCESS; }

int cublasLtMatmulPreferenceCreate(void **out) { return *out = (void *)1, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(void *, int, const void *, size_t) { return SUCCESS; }
int cublasLtMatmulPreferenceDestroy(void *) { return SUCCESS; }

int cublasLtMatmulAlgoGetHeuristic(void *, Descriptor *, Layout *, Layout *, Layout *, Layout *,
                                   void *, int, void *, int *found) {
  return *found = 1, SUCCESS;
}

int cublasLtMatmul(uint64_t handle, Descriptor *descriptor, const float *alpha, const void *A, Layout *a,
                   const void *B, Layout *b, const float *beta, const void *C, Layout *c, void *D,
                   Layout *d, const void *, void *, size_t, void *stream) {
  Product product = {*descriptor, *a, *b, *c, *d, A, B, C, D, *alpha, *beta};
  if (!fits(product)) return INVALID_VALUE;
  if (handle != (uint64_t)asaCurrentDevice() + 1) return NOT_INITIALIZED;
  for (const void *memory : {A, B, C, (const void *)D}) {
    if (!asaIsOfCurrent(memory)) return MAPPING_ERROR;
  }
  return asaEnqueue(stream, [product] { return multiply(product), 0; }) ? INVALID_VALUE : SUCCESS;
}

} // extern "C"
