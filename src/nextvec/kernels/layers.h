#pragma once
#include "vectors.h"

#define SUMS 16 /* sums of every SUMSth number, added at the end: the same order for every width of a register */

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
    for (int r = 0; r < SUMS / W; r++) sums[r] += load(x + i + r * W, n - i - r * W);
  return added(sums);
}

static inline float total_of_squares(const float *x, int64_t n) {
  floats sums[SUMS / W] = {0};
  for (int64_t i = 0; i < n; i += SUMS)
    for (int r = 0; r < SUMS / W; r++) {
      floats v = load(x + i + r * W, n - i - r * W);
      sums[r] += v * v;
    }
  return added(sums);
}

static inline void layer_norm(const float *x, int64_t width, const float *scale, const float *bias, float epsilon, float *y) {
  float mean = total(x, width) / (float)width;
  for (int64_t i = 0; i < width; i++) y[i] = x[i] - mean;
  float inverse = 1 / sqrtf(total_of_squares(y, width) / (float)width + epsilon);
  for (int64_t i = 0; i < width; i++) y[i] = y[i] * inverse * scale[i] + bias[i];
}

/* x (1 + erf(x / sqrt 2)) / 2; erf to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26). */
static inline void gelu(const float *x, int64_t width, float *y) {
  for (int64_t i = 0; i < width; i += W) {
    floats v = load(x + i, width - i);
    floats size = (floats)((ints)v & INT32_MAX) * 0.707106781f;
    floats t = 1 / (1 + 0.3275911f * size);
    floats tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    floats half = 0.5f * tail * exponential(-size * size); /* of the mass, beyond |v| */
    store(y + i, v * choose(v < 0, half, 1 - half), width - i);
  }
}
