/* Products of a few vectors with packed weights; each weight is read once for any number of vectors.
 *
 * One core reads a single ascending stream fastest, so a matrix is stored in the order in which it is read: in panels of
 * PANEL rows, and within a panel column by column. Each lane of a register sums one row; nothing is summed across lanes.
 *
 *   float32   [panel][k][PANEL]
 *   bfloat16  [panel][k][PANEL / 32][16][2]: a word holds rows j (low half) and j + 16, so that a shift or a mask widens it
 *   int8      [panel][k / 4][PANEL][4], the code + ZERO; missing places at the end hold ZERO
 */
#include "weights.h"
#include "export.h"
#include "vectors.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#define PANEL 64
#define PARTS (PANEL / W)
#define ZERO 128
#define GROUP (W == 16 ? 6 : 1) /* vectors at once: as many as fit the remaining registers */

/* Below: the sums of a panel with n vectors from x, [n][PANEL]. */

INLINE void store_sums(floats sums[][PARTS], int n, float *out) {
  UNROLL for (int b = 0; b < n; b++)
    UNROLL for (int p = 0; p < PARTS; p++) *(loose_floats *)(out + b * PANEL + p * W) = sums[b][p];
}

INLINE void sum_float32(const float *codes, int64_t width, const float *x, int64_t stride, int n, float *out) {
  floats sums[GROUP][PARTS] = {0};
  for (int64_t k = 0; k < width; k++, codes += PANEL)
    UNROLL for (int p = 0; p < PARTS; p++) {
      floats w = *(const loose_floats *)(codes + p * W);
      UNROLL for (int b = 0; b < n; b++) sums[b][p] += w * x[b * stride + k];
    }
  store_sums(sums, n, out);
}

INLINE void sum_bfloat16(const int32_t *codes, int64_t width, const float *x, int64_t stride, int n, float *out) {
  floats sums[GROUP][PARTS] = {0};
  for (int64_t k = 0; k < width; k++, codes += PANEL / 2)
    UNROLL for (int i = 0; i < PARTS / 2; i++) {
      ints words = *(const loose_ints *)(codes + i * W);
      floats low = (floats)(words << 16), high = (floats)(words & (int32_t)0xffff0000);
      int p = i * W / 16 * (32 / W) + i % (16 / W);
      UNROLL for (int b = 0; b < n; b++) {
        sums[b][p] += low * x[b * stride + k];
        sums[b][p + 16 / W] += high * x[b * stride + k];
      }
    }
  store_sums(sums, n, out);
}

INLINE void sum_int8(const int32_t *codes, int64_t width, const float *x, int64_t stride, int n, float *out) {
  floats sums[GROUP][PARTS] = {0};
  for (int64_t k = 0; k < width; k++)
    UNROLL for (int p = 0; p < PARTS; p++) {
      ints four = *(const loose_ints *)(codes + k / 4 * PANEL + p * W);
      floats w = __builtin_convertvector((four >> k % 4 * 8 & 255) - ZERO, floats);
      UNROLL for (int b = 0; b < n; b++) sums[b][p] += w * x[b * stride + k];
    }
  store_sums(sums, n, out);
}

#if defined(__AVX512VNNI__)
/* For int8, a vector is a scale times integers of 24 bits, the precision of float32: three signed digits of base 256. Their
 * products are summed without rounding, 64 weights at a time; three such products cost less than widening the weights. */
#define DIGITS 3
#define LARGEST 8323072 /* 127 * 65536; a little below the largest number with three digits, so that rounding cannot exceed it */
#define WIDEST 65536    /* columns whose sums stay within 32 bits: 255 * 128 * 65536 < 2^31 */
#define FIXED_GROUP 2

typedef struct {
  float scale;
  int32_t offsets[DIGITS]; /* ZERO times the sum of each digit: the contribution of the codes' offset */
} Fixed;

static int64_t digits_bytes(int64_t width) { return (width + 15) / 16 * 16; }

INLINE __m512 load_up_to(const float *x, int64_t left) {
  return _mm512_maskz_loadu_ps(left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff, x);
}

/* digits [DIGITS][digits_bytes]. A vector that is not finite gets the scale NaN, so its products are NaN. */
static Fixed to_fixed(const float *x, int64_t width, int8_t *digits) {
  __m512 most = _mm512_set1_ps(1e-30f);
  int finite = 1;
  for (int64_t k = 0; k < width; k += 16) {
    __m512 size = _mm512_abs_ps(load_up_to(x + k, width - k));
    finite &= _mm512_cmp_ps_mask(size, _mm512_set1_ps(INFINITY), _CMP_LT_OQ) == 0xffff;
    most = _mm512_max_ps(most, size);
  }
  float largest = _mm512_reduce_max_ps(most);
  Fixed fixed = {finite ? largest / LARGEST : NAN, {0}};
  __m512 inverse = _mm512_set1_ps(finite ? LARGEST / largest : 0);
  __m512i totals[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t bytes = digits_bytes(width);
  for (int64_t k = 0; k < width; k += 16) {
    __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_up_to(x + k, width - k), inverse));
    UNROLL for (int d = 0; d < DIGITS; d++) {
      __m128i digit = _mm512_cvtepi32_epi8(whole);
      __m512i wide = _mm512_cvtepi8_epi32(digit);
      _mm_storeu_si128((__m128i *)(digits + d * bytes + k), digit);
      totals[d] = _mm512_add_epi32(totals[d], wide);
      whole = _mm512_srai_epi32(_mm512_sub_epi32(whole, wide), 8);
    }
  }
  for (int d = 0; d < DIGITS; d++) fixed.offsets[d] = ZERO * _mm512_reduce_add_epi32(totals[d]);
  return fixed;
}

/* sum += the products of 4 codes per row with 4 digits. In assembly, because gcc 12 copies every sum to memory when the
 * intrinsic is used, and a separate broadcast makes this a quarter slower. */
INLINE void add_products(__m512i *sum, __m512i codes, const int8_t *digits) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(codes), "m"(*(const int8_t(*)[4])digits));
}

INLINE void sum_fixed(const uint8_t *codes, int64_t width, const Fixed *x, const int8_t *digits, int n, float *out) {
  __m512i sums[FIXED_GROUP][DIGITS][PARTS];
  UNROLL for (int b = 0; b < n; b++)
    UNROLL for (int d = 0; d < DIGITS; d++)
      UNROLL for (int p = 0; p < PARTS; p++) sums[b][d][p] = _mm512_set1_epi32(-x[b].offsets[d]);
  int64_t bytes = digits_bytes(width);
  for (int64_t k = 0; k < width; k += 4, codes += 4 * PANEL) {
    __m512i w[PARTS];
    UNROLL for (int p = 0; p < PARTS; p++) w[p] = _mm512_loadu_si512(codes + p * 64);
    UNROLL for (int b = 0; b < n; b++)
      UNROLL for (int d = 0; d < DIGITS; d++)
        UNROLL for (int p = 0; p < PARTS; p++) add_products(&sums[b][d][p], w[p], digits + (b * DIGITS + d) * bytes + k);
  }
  UNROLL for (int b = 0; b < n; b++)
    UNROLL for (int p = 0; p < PARTS; p++) {
      __m512 sum = _mm512_setzero_ps();
      UNROLL for (int d = DIGITS - 1; d >= 0; d--)
        sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(256), _mm512_cvtepi32_ps(sums[b][d][p]));
      _mm512_storeu_ps(out + b * PANEL + p * W, _mm512_mul_ps(sum, _mm512_set1_ps(x[b].scale)));
    }
}
#endif

/* A matrix and its vectors: floats, or fixed-point numbers where `fixed` is not NULL. */
typedef struct {
  const Matrix *w;
  Vectors x;
  void *fixed, *digits;
} Product;

static int64_t panel_bytes(const Matrix *w) {
  if (w->format == INT8) return PANEL * ((w->width + 3) / 4 * 4);
  return PANEL * w->width * (w->format == FLOAT32 ? 4 : 2);
}

INLINE void sum_panel(const Product *of, const void *codes, int64_t first, int n, float *out) {
  int64_t width = of->w->width, stride = of->x.stride;
  const float *x = of->x.at + first * stride;
#if defined(__AVX512VNNI__)
  if (of->fixed) {
    const int8_t *digits = (const int8_t *)of->digits + first * DIGITS * digits_bytes(width);
    sum_fixed(codes, width, (const Fixed *)of->fixed + first, digits, n <= FIXED_GROUP ? n : FIXED_GROUP, out);
    return;
  }
#endif
  switch (of->w->format) {
  case FLOAT32: sum_float32(codes, width, x, stride, n, out); break;
  case BFLOAT16: sum_bfloat16(codes, width, x, stride, n, out); break;
  default: sum_int8(codes, width, x, stride, n, out);
  }
}

/* Separate code for each number of vectors, so that their sums stay in registers. */
static void sum_group(const Product *of, const void *codes, int64_t first, int n, float *out) {
  switch (n) {
#if W == 16
  case 6: sum_panel(of, codes, first, 6, out); break;
  case 5: sum_panel(of, codes, first, 5, out); break;
  case 4: sum_panel(of, codes, first, 4, out); break;
  case 3: sum_panel(of, codes, first, 3, out); break;
  case 2: sum_panel(of, codes, first, 2, out); break;
#endif
  default: sum_panel(of, codes, first, 1, out);
  }
}

static void finish(const Matrix *w, int64_t row, const float *sums, const float *bias, float *y) {
  int64_t rows = w->rows - row < PANEL ? w->rows - row : PANEL;
  for (int64_t r = 0; r < rows; r++) {
    float sum = w->format == INT8 ? sums[r] * w->scales[row + r] : sums[r];
    y[row + r] = bias ? sum + bias[row + r] : sum;
  }
}

static void sum_all(const Product *of, int64_t group, const float *bias, float *y) {
  const Matrix *w = of->w;
  const char *codes = w->codes;
  for (int64_t row = 0; row < w->rows; row += PANEL, codes += panel_bytes(w))
    for (int64_t first = 0; first < of->x.count; first += group) {
      float sums[GROUP * PANEL];
      int n = (int)(of->x.count - first < group ? of->x.count - first : group);
      sum_group(of, codes, first, n, sums);
      for (int b = 0; b < n; b++) finish(w, row, sums + b * PANEL, bias, y + (first + b) * w->rows);
    }
}

int weights_product(const Matrix *w, Vectors x, const float *bias, float *y) {
  Product of = {w, x, NULL, NULL};
#if defined(__AVX512VNNI__)
  if (w->format == INT8 && w->width <= WIDEST) {
    int64_t bytes = DIGITS * digits_bytes(w->width);
    of.fixed = malloc(x.count * (sizeof(Fixed) + bytes));
    if (!of.fixed) return 0;
    of.digits = (Fixed *)of.fixed + x.count;
    for (int64_t b = 0; b < x.count; b++)
      ((Fixed *)of.fixed)[b] = to_fixed(x.at + b * x.stride, w->width, (int8_t *)of.digits + b * bytes);
    sum_all(&of, FIXED_GROUP, bias, y);
    free(of.fixed);
    return 1;
  }
#endif
  sum_all(&of, GROUP, bias, y);
  return 1;
}

EXPORT int32_t nextvec_weights_product(const Matrix *w, const float *x, int64_t count, const float *bias, float *y) {
  return weights_product(w, (Vectors){x, w->width, count}, bias, y);
}
