#pragma once
#include <stdint.h>

/* The order of weights.py. */
enum { FLOAT32, BFLOAT16, INT8 };

/* A packed matrix; see weights.c for the order of its codes. */
typedef struct {
  const void *codes;
  const float *scales; /* of int8: one per row */
  int64_t rows, width;
  int32_t format;
} Matrix;

/* Vectors as wide as a matrix; stride counts floats from one to the next. */
typedef struct {
  const float *at;
  int64_t stride, count;
} Vectors;

/* y [count, rows] = x wT + bias, or without where bias is NULL. Returns 0 where memory is lacking. */
int weights_product(const Matrix *w, Vectors x, const float *bias, float *y);
