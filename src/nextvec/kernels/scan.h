#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* How numbers are stored; the order of scan_rows.py. */
enum { FLOAT32, FLOAT16, INT8, INT16 };

/* Lanes of a register; gcc and clang compile the same lines for other processors. */
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

INLINE floats load_float32(const float *p) { return *(const loose_floats *)p; }

INLINE floats load_float16(const uint16_t *p) {
#if defined(__AVX512F__)
  return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
  return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  /* The bits of a half, shifted to those of a float, are 2^112 times too small; the product is exact, subnormals included. */
  typedef uint16_t halves __attribute__((vector_size(2 * W)));
  typedef uint32_t words __attribute__((vector_size(4 * W)));
  halves h;
  memcpy(&h, p, sizeof h);
  words w = __builtin_convertvector(h, words);
  floats size = (floats)((w & 0x7fff) << 13) * 0x1p112f;
  return (floats)((words)size | (w & 0x8000) << 16);
#endif
}

INLINE floats load(const void *row, int stored, int64_t i) {
  return stored == FLOAT32 ? load_float32((const float *)row + i) : load_float16((const uint16_t *)row + i);
}

/* The same near the end of a row; places behind it are zeros. */
INLINE floats load_part(const void *row, int stored, int64_t i, int64_t dim) {
  if (dim - i >= W) return load(row, stored, i);
  char part[4 * W] = {0};
  int64_t size = stored == FLOAT32 ? 4 : 2;
  memcpy(part, (const char *)row + i * size, size * (dim - i));
  return load(part, stored, 0);
}

float scan_product(const void *row, int stored, const float *query, int64_t dim);
int32_t nextvec_scan_bounds(const float *vectors, int64_t count, int64_t dim, int32_t most, double longest, double error,
                            double up, int16_t *codes, float *scales, float *lengths, float *slack);
