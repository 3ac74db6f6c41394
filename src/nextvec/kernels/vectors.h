#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

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

INLINE floats larger(floats x, floats y) { return choose(x > y, x, y); }

INLINE floats sum(floats x, floats y) { return x + y; }

/* Joins all lanes in a fixed order; every lane then holds the result. */
#define TURN(join, ...) x = join(x, __builtin_shufflevector(x, x, __VA_ARGS__));
#if W == 16
#define JOIN(join)                                                                                                    \
  TURN(join, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)                                                      \
  TURN(join, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)                                                      \
  TURN(join, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)                                                      \
  TURN(join, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif W == 8
#define JOIN(join) TURN(join, 4, 5, 6, 7, 0, 1, 2, 3) TURN(join, 2, 3, 0, 1, 6, 7, 4, 5) TURN(join, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define JOIN(join) TURN(join, 2, 3, 0, 1) TURN(join, 1, 0, 3, 2)
#endif

INLINE float sum_of(floats x) {
  JOIN(sum)
  return x[0];
}

INLINE float largest_of(floats x) {
  JOIN(larger)
  return x[0];
}

/* The sums of W lanes of a product, not yet joined; several, so that no addition waits for the one before. */
INLINE floats lane_sums(const float *x, const float *y, int64_t n) {
  floats sums[4] = {0};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; j++) sums[j] += load(x + i + j * W, W) * load(y + i + j * W, W);
  for (; i < n; i += W) sums[0] += load(x + i, n - i) * load(y + i, n - i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static inline float dot(const float *x, const float *y, int64_t n) { return sum_of(lane_sums(x, y, n)); }

static inline float norm(const float *x, int64_t n) { return sqrtf(dot(x, x, n)); }

/* Replaces logits by their softmax with a sink as an additional logit; a sink of -INFINITY has no effect. */
static inline void softmax(float *logits, int64_t n, float sink) {
  float most = sink, sum = 0;
  for (int64_t i = 0; i < n; i++) most = logits[i] > most ? logits[i] : most;
  for (int64_t i = 0; i < n; i += W) store(logits + i, exponential(load(logits + i, n - i) - most), n - i);
  for (int64_t i = 0; i < n; i++) sum += logits[i];
  sum += sink == -INFINITY ? 0 : expf(sink - most);
  for (int64_t i = 0; i < n; i++) logits[i] /= sum;
}
