/* The deciding product. A product of two floats is exact in double, and the order of the sums is fixed, so the bits are
 * the same on every processor: lane j of 16 adds places j, j + 16, ... in order, then the upper half of the lanes is added
 * to the lower half until one is left. */
#ifndef __clang__
#pragma GCC optimize("no-associative-math")
#else
#pragma clang fp reassociate(off)
#endif
#include "export.h"
#include "scan.h"
#include <math.h>

#define LANES 16
#define COLUMNS 4 /* queries that are multiplied at once */
#define LARGEST 1e30 /* as in scan_rows.py */

#define HALF (W / 2)
typedef double doubles __attribute__((vector_size(8 * HALF)));
typedef float halves __attribute__((vector_size(4 * HALF)));
typedef float loose_halves __attribute__((vector_size(4 * HALF), aligned(4), may_alias));

/* sums[c]: the lanes of each query, plus the products of 16 places of a row. */
INLINE void add_products(doubles (*sums)[LANES / HALF], const float *x, const float *queries, int64_t apart,
                         const int columns) {
  UNROLL for (int j = 0; j < LANES / HALF; j++) {
    doubles wide = __builtin_convertvector(*(const loose_halves *)(x + j * HALF), doubles);
    UNROLL for (int c = 0; c < columns; c++)
      sums[c][j] += wide * __builtin_convertvector(*(const loose_halves *)(queries + c * apart + j * HALF), doubles);
  }
}

/* out[c * apart]: the products of one row with several queries, which hide each other's latency. */
INLINE void products(const void *row, int stored, const float *queries, int64_t dim, float *out, int64_t apart,
                     const int columns) {
  doubles sums[COLUMNS][LANES / HALF] = {0};
  float x[LANES];
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    UNROLL for (int j = 0; j < LANES; j += W) *(loose_floats *)(x + j) = load(row, stored, i + j);
    add_products(sums, x, queries + i, dim, columns);
  }
  if (i < dim) {
    float y[COLUMNS][LANES] = {0};
    for (int j = 0; j < LANES; j += W) *(loose_floats *)(x + j) = i + j < dim ? load_part(row, stored, i + j, dim) : (floats){0};
    for (int c = 0; c < columns; c++) memcpy(y[c], queries + c * dim + i, 4 * (dim - i));
    add_products(sums, x, y[0], LANES, columns);
  }
  for (int c = 0; c < columns; c++) {
    double lanes[LANES];
    memcpy(lanes, sums[c], sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
      for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    out[c * apart] = (float)lanes[0];
  }
}

float scan_product(const void *row, int stored, const float *query, int64_t dim) {
  float product;
  products(row, stored, query, dim, &product, 1, 1);
  return product;
}

/* out [queries, count] of chosen rows. */
EXPORT void nextvec_scan_products(const void *rows, int32_t stored, int64_t dim, const int64_t *chosen, int64_t count,
                                  const float *vectors, int64_t queries, float *out) {
  int64_t bytes = dim * (stored == FLOAT32 ? 4 : 2);
  for (int64_t i = 0; i < count; i++) {
    const char *row = (const char *)rows + chosen[i] * bytes;
    int64_t c = 0;
    for (; c + COLUMNS <= queries; c += COLUMNS)
      products(row, stored, vectors + c * dim, dim, out + c * count + i, count, COLUMNS);
    for (; c < queries; c++) products(row, stored, vectors + c * dim, dim, out + c * count + i, count, 1);
  }
}

/* The codes and bounds of queries; scan.py derives the bounds, and scan_bounds.py computes the same without compiled code.
 * `most` is the largest code, 0 where rows are read as floats; `up` rounds up what a sum may have lost. Returns 0 where a
 * query is not finite, or so long that its product with a row may not be. */
EXPORT int32_t nextvec_scan_bounds(const float *vectors, int64_t count, int64_t dim, int32_t most, double longest, double error,
                                        double up, int16_t *codes, float *scales, float *lengths, float *slack) {
  for (int64_t c = 0; c < count; c++, vectors += dim) {
    double squares = 0, lost = 0, of_rows = 0;
    float largest = 0;
    for (int64_t i = 0; i < dim; i++) {
      squares += (double)vectors[i] * vectors[i];
      largest = fabsf(vectors[i]) > largest ? fabsf(vectors[i]) : largest;
    }
    double length = sqrt(squares) * up;
    if (!(length * longest < LARGEST)) return 0;
    if (most) {
      float one = scales[c] = largest * (float)(up / most) + 1e-36f;
      double left_out = 0;
      for (int64_t i = 0; i < dim; i++, codes++) {
        *codes = (int16_t)rintf(vectors[i] / one);
        double e = vectors[i] - (double)*codes * one;
        left_out += e * e;
      }
      lost = sqrt(left_out) * up;
    } else
      of_rows = error * length;
    double rounding = (dim + 16) * 0x1p-24 * up * longest * (length + lost) + 1e-36;
    double low = longest * lost + rounding + of_rows;
    lengths[c] = (float)(length * up);
    slack[c] = (float)(low * up);
  }
  return 1;
}
