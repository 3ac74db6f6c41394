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
#define LARGEST 1e30 /* as in scan_rows.py */

static void add_products(double *lanes, const float *x, const float *y) {
  for (int j = 0; j < LANES; j++) lanes[j] += (double)x[j] * (double)y[j];
}

float scan_product(const void *row, int stored, const float *query, int64_t dim) {
  double lanes[LANES] = {0};
  float x[LANES], y[LANES] = {0};
  for (int64_t i = 0; i < dim; i += LANES) {
    int64_t left = dim - i;
    for (int j = 0; j < LANES; j += W) {
      floats part = {0};
      if (j < left) part = load_part(row, stored, i + j, dim);
      memcpy(x + j, &part, sizeof part);
    }
    if (left < LANES) {
      memcpy(y, query + i, 4 * left);
      memset(y + left, 0, 4 * (LANES - left));
    }
    add_products(lanes, x, left < LANES ? y : query + i);
  }
  for (int half = LANES / 2; half; half /= 2)
    for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
  return (float)lanes[0];
}

EXPORT void nextvec_scan_products(const void *rows, int32_t stored, int64_t dim, const int64_t *chosen, int64_t count,
                                  const float *query, float *out) {
  int64_t bytes = dim * (stored == FLOAT32 ? 4 : 2);
  for (int64_t i = 0; i < count; i++) out[i] = scan_product((const char *)rows + chosen[i] * bytes, stored, query, dim);
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
