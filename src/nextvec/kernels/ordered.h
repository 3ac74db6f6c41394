/* Sums and maxima in one order at every level, so that results have the same bits. Included before everything else: the
 * other headers must be compiled without reordered sums too. For AVX2 and AVX-512. */
#pragma once
#ifdef __clang__
#pragma clang fp reassociate(off)
#else
#pragma GCC optimize("no-associative-math")
#endif
#include <immintrin.h>
#include "vectors.h"

#define UNROLL _Pragma("GCC unroll 16")
#define SUMS 16 /* sums of every SUMSth number, added at the end */

INLINE floats load_up_to(const float *x, int64_t left) { return left > 0 ? load(x, left) : (floats){0}; }

INLINE float added(const floats sums[SUMS / W]) {
  float part[SUMS];
  memcpy(part, sums, sizeof part);
  for (int n = SUMS / 2; n; n /= 2)
    for (int i = 0; i < n; i++) part[i] += part[i + n];
  return part[0];
}

static inline float total(const float *x, int64_t n) {
  floats sums[SUMS / W] = {0};
  for (int64_t i = 0; i < n; i += SUMS)
    for (int r = 0; r < SUMS / W; r++) sums[r] += load_up_to(x + i + r * W, n - i - r * W);
  return added(sums);
}

static inline float total_of_squares(const float *x, int64_t n) {
  floats sums[SUMS / W] = {0};
  for (int64_t i = 0; i < n; i += SUMS)
    for (int r = 0; r < SUMS / W; r++) {
      floats v = load_up_to(x + i + r * W, n - i - r * W);
      sums[r] += v * v;
    }
  return added(sums);
}

INLINE floats larger(floats x, floats y) {
#if defined(__AVX512F__)
  return (floats)_mm512_max_ps((__m512)x, (__m512)y);
#else
  return (floats)_mm256_max_ps((__m256)x, (__m256)y);
#endif
}

INLINE float largest_lane(floats x) {
  float most = x[0];
  for (int lane = 1; lane < W; lane++) most = x[lane] > most ? x[lane] : most;
  return most;
}
