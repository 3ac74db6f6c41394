/* The product that decides. A product of two floats is exact in double, and the sums have one order, so the bits are
 * the same on every processor: lane j of 16 adds places j, j + 16, ... in turn, then halves are folded onto each other. */
#ifndef __clang__
#pragma GCC optimize("no-associative-math")
#else
#pragma clang fp reassociate(off)
#endif
#include "export.h"
#include "scan.h"

#define LANES 16

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
