#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Lanes of a register. */
#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif

typedef float floats __attribute__((vector_size(4 * W)));
typedef int32_t ints __attribute__((vector_size(4 * W)));
typedef float loose_floats __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t loose_ints __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE floats all(float x) { return x + (floats){0}; }

INLINE floats choose(ints which, floats yes, floats no) { return (floats)((which & (ints)yes) | (~which & (ints)no)); }

/* Up to W numbers; zeros in the remaining lanes. */
INLINE floats load(const float *p, int64_t left) {
  if (left >= W) return *(const loose_floats *)p;
  floats x = {0};
  memcpy(&x, p, 4 * left);
  return x;
}

INLINE void store(float *p, floats x, int64_t left) {
  if (left >= W)
    *(loose_floats *)p = x;
  else
    memcpy(p, &x, 4 * left);
}

/* e^x: 2^whole, made of the exponent's bits, times 2^part, by Cephes' polynomial for [-1/2, 1/2] (exp2f, S. Moshier).
 * Vectorised by hand, because compilers vectorise the scalar form on some levels only. */
INLINE floats exponential(floats x) {
  floats t = x * 1.44269504f, bound = all(126);
  t = choose(t > bound, bound, t);
  t = choose(t < -bound, -bound, t);
  floats half = (floats)(((ints)t & INT32_MIN) | (ints)all(0.5f));
  ints whole = __builtin_convertvector(t + half, ints);
  floats f = t - __builtin_convertvector(whole, floats), p = all(1.535336188e-4f);
  p = p * f + 1.339887440e-3f;
  p = p * f + 9.618437357e-3f;
  p = p * f + 5.550332471e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472028e-1f;
  p = p * f + 1;
  return p * (floats)((whole + 127) << 23);
}

INLINE floats sigmoid(floats x) { return 1 / (1 + exponential(-x)); }

INLINE floats tangent(floats x) { return 2 * sigmoid(2 * x) - 1; }

#define LEAST_NORM 1e-12f /* as in torch.nn.functional.normalize */

static inline float at_least(float x, float least) { return x < least ? least : x; }

static inline float dot(const float *x, const float *y, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static inline float norm(const float *x, int64_t n) { return sqrtf(dot(x, x, n)); }

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

/* Replaces logits by their softmax with a sink as an additional logit; a sink of -INFINITY has no effect. */
static inline void softmax(float *logits, int64_t n, float sink) {
  float most = sink, sum = 0;
  for (int64_t i = 0; i < n; i++) most = logits[i] > most ? logits[i] : most;
  for (int64_t i = 0; i < n; i += W) store(logits + i, exponential(load(logits + i, n - i) - most), n - i);
  for (int64_t i = 0; i < n; i++) sum += logits[i];
  sum += sink == -INFINITY ? 0 : expf(sink - most);
  for (int64_t i = 0; i < n; i++) logits[i] /= sum;
}
