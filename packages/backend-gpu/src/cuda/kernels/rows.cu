// Rows of tables: T is the type of as many bits as an element has, or 128 where
// rows are whole pieces of 16 bytes.
#include "pieces.cuh"

/** Elements of x that go to y, by rows of one of them. */
struct Part {
  const T *x;
  const int *rows;
  T *y;
  i64 count, width;
  // Its first block of threads.
  i64 start;
};
struct Parts {
  Part list[MOST];
};

/** y[i] = x[rows[i]] */
extern "C" __global__ void gatherRows(Parts parts, int count) {
  Part part = parts.list[partOf(parts, count)];
  i64 i = indexIn(part);
  if (i >= part.count) return;
  i64 row = part.rows[i / part.width];
  part.y[i] = part.x[row * part.width + i % part.width];
}

/** y[rows[i]] = x[i] */
extern "C" __global__ void scatterRows(Parts parts, int count) {
  Part part = parts.list[partOf(parts, count)];
  i64 i = indexIn(part);
  if (i >= part.count) return;
  i64 row = part.rows[i / part.width];
  part.y[row * part.width + i % part.width] = part.x[i];
}
