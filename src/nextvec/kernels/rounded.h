#pragma once
#include "weights.h"

/* A rounded vector is a scale times whole numbers from -127 to 127: bytes where the processor sums products of bytes
 * (VNNI), words elsewhere. */
#if defined(__AVX512VNNI__)
typedef int8_t Code;
#else
typedef int16_t Code;
#endif

typedef struct {
  Code *codes; /* [count, width] */
  float *scales;
  int32_t *offsets; /* the sum of the codes, times the weights' code of 0 */
} Rounded;

/* Rotates x [width] in place and rounds it; it becomes vector `at`. The width is a multiple of 128. */
void rounded_from(float *x, int64_t width, const Rounded *to, int64_t at);

/* y [count, rows] = x wT + bias; w is int8, rotated, and its number of rows is a multiple of 64. */
void rounded_product(const Matrix *w, const Rounded *x, int64_t count, const float *bias, float *y);
